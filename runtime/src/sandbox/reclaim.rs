//! Reclaiming memory that was freed in the guest: the guest's balloon is inflated with it for a moment.
//!
//! The guest does not know which of its free pages the host still holds, and the host does not know which of the
//! pages it holds are free in the guest. The amount of memory that is both is known well enough: it is what the host
//! holds less what the guest uses. That much is reclaimable.

use std::future::Future;
use std::io;
use std::time::Duration;

use kiai_vmm::BalloonError;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Sandbox;
use crate::agent::message::MemoryFreed;
use crate::failure::chain;

const MIB: u64 = 1 << 20;

/// The least amount that is reclaimed. Less is not worth the guest's work, and the estimate is not more exact: this
/// process has some memory besides the guest's RAM, and the host holds guest RAM in pages of 2 MiB.
const NOTABLE: u64 = 64 * MIB;

/// The most by which the balloon grows at a time.
const STEP: u64 = 1024 * MIB;

/// How long a guest may take to inflate its balloon, and to deflate it. Memory that is not in the balloon by then is
/// reclaimed by the guest kernel's free page reports, which are slower.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why memory was not reclaimed.
#[derive(Debug, thiserror::Error)]
enum ReclaimError {
    #[error("read /proc/self/statm")]
    Held(#[source] io::Error),
    #[error(transparent)]
    Balloon(#[from] BalloonError),
}

impl Sandbox {
    /// Reclaims free memory each time the guest reports it, until the sender of reports is gone.
    pub async fn reclaim_memory(&self, mut freed: watch::Receiver<MemoryFreed>) {
        // What could not be reclaimed the last time is not tried again until it has become more.
        let mut unreclaimable = 0;
        while freed.changed().await.is_ok() {
            let memory = self.vm.0.memory().plugged;
            let _same_size = self.pod.lock().await;
            let freed = freed.borrow_and_update().clone();
            if self.vm.0.memory().plugged != memory {
                // The report is about a guest of another size.
                continue;
            }
            match reclaim(self, u64::from(memory) * MIB, &freed, unreclaimable).await {
                Ok(left) => {
                    tracing::debug!(free = freed.bytes / MIB, left = left / MIB, "MiB of memory");
                    unreclaimable = left;
                }
                Err(ReclaimError::Balloon(error)) => tracing::debug!("no memory is reclaimed: {error}"),
                Err(error) => tracing::warn!(error = %chain(&error), "no memory is reclaimed"),
            }
        }
    }
}

/// A machine with a balloon in it.
trait Ballooned: Sync {
    /// Bytes of memory that the host holds for the machine.
    fn held(&self) -> io::Result<u64>;
    /// Asks for a balloon of `bytes` and waits for it, but no longer than `patience`; returns the size it has then.
    fn resize_balloon(
        &self,
        bytes: u64,
        patience: Duration,
    ) -> impl Future<Output = Result<u64, BalloonError>> + Send;
}

impl Ballooned for Sandbox {
    /// The anonymous memory of this process, which has one machine: guest RAM and some MiB more. Guest RAM in the
    /// host's pool of huge pages is not counted: only the guest kernel's free page reports reclaim that.
    fn held(&self) -> io::Result<u64> {
        let statm = std::fs::read_to_string("/proc/self/statm")?;
        let mut pages = statm.split(' ').skip(1).map(str::parse::<u64>);
        match (pages.next(), pages.next()) {
            (Some(Ok(resident)), Some(Ok(of_files))) => {
                Ok(resident.saturating_sub(of_files) * rustix::param::page_size() as u64)
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    async fn resize_balloon(&self, bytes: u64, patience: Duration) -> Result<u64, BalloonError> {
        let vm = self.vm.0.clone();
        let resize = move || {
            vm.request_balloon(bytes)?;
            Ok(vm.await_balloon(patience))
        };
        tokio::task::spawn_blocking(resize).await.unwrap_or(Ok(0))
    }
}

/// Reclaims memory of a guest with `memory` bytes of RAM, if notably more is reclaimable than the `unreclaimable` bytes
/// that were left the last time; returns how many bytes are left now.
async fn reclaim(
    machine: &impl Ballooned,
    memory: u64,
    freed: &MemoryFreed,
    unreclaimable: u64,
) -> Result<u64, ReclaimError> {
    let used = memory.saturating_sub(freed.bytes);
    let reclaimable = || Ok(machine.held().map_err(ReclaimError::Held)?.saturating_sub(used));
    let now = reclaimable()?;
    let room = room(memory, freed);
    if now.saturating_sub(unreclaimable) < NOTABLE || room < NOTABLE {
        return Ok(unreclaimable.min(now));
    }
    let inflated = inflate(machine, room, reclaimable).await;
    machine.resize_balloon(0, PATIENCE).await?;
    inflated?;
    reclaimable()
}

/// The greatest size of the balloon: an eighth of the guest's free memory is left for allocations meanwhile.
fn room(memory: u64, freed: &MemoryFreed) -> u64 {
    let free = freed.bytes.min(memory);
    free.saturating_sub(freed.reserve).saturating_sub(free / 8)
}

/// Inflates the balloon until little is reclaimable. The guest chooses the free pages that go into it, and some of them
/// the host does not hold, so the balloon may have to grow further: as long as a step gains more than half of its size.
async fn inflate(
    machine: &impl Ballooned,
    room: u64,
    reclaimable: impl Fn() -> Result<u64, ReclaimError>,
) -> Result<(), ReclaimError> {
    let deadline = Instant::now() + PATIENCE;
    let mut size = 0;
    let mut left = reclaimable()?;
    loop {
        let next = room.min(size + left.min(STEP)) / MIB * MIB;
        if next == size {
            return Ok(());
        }
        let patience = deadline.saturating_duration_since(Instant::now());
        // The balloon is smaller than asked for if the guest is slow, or needs the memory.
        let reached = machine.resize_balloon(next, patience).await?;
        let before = std::mem::replace(&mut left, reclaimable()?);
        let gained = before.saturating_sub(left);
        tracing::debug!(
            balloon = reached / MIB,
            of = next / MIB,
            gained = gained / MIB,
            left = left / MIB,
            "MiB"
        );
        if reached < next || left < NOTABLE || gained < (next - size) / 2 {
            return Ok(());
        }
        size = next;
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// A machine with 1024 MiB of RAM. Sizes are in MiB.
    struct FakeMachine {
        held: Mutex<u64>,
        /// MiB of free pages that the host does not hold; they go into the balloon first.
        first: u64,
        /// The greatest size of the balloon.
        most: u64,
        pinned: bool,
        sizes: Mutex<Vec<u64>>,
    }

    impl FakeMachine {
        fn holding(held: u64) -> Self {
            Self { held: Mutex::new(held), first: 0, most: 1024, pinned: false, sizes: Mutex::default() }
        }
    }

    impl Ballooned for FakeMachine {
        fn held(&self) -> io::Result<u64> {
            Ok(*self.held.lock() * MIB)
        }

        async fn resize_balloon(&self, bytes: u64, _: Duration) -> Result<u64, BalloonError> {
            if self.pinned && bytes > 0 {
                return Err(BalloonError::Pinned);
            }
            let mut sizes = self.sizes.lock();
            let size = (bytes / MIB).min(self.most);
            let before = sizes.last().copied().unwrap_or(0).max(self.first);
            *self.held.lock() -= size.saturating_sub(before);
            sizes.push(size);
            Ok(size * MIB)
        }
    }

    /// What is still reclaimable, and the sizes the balloon had.
    async fn reclaimed(machine: &FakeMachine, free: u64, unreclaimable: u64) -> (u64, Vec<u64>) {
        let freed =
            MemoryFreed { bytes: free.saturating_mul(MIB), reserve: 48 * MIB, ..MemoryFreed::default() };
        let left = reclaim(machine, 1024 * MIB, &freed, unreclaimable * MIB).await.unwrap();
        (left / MIB, machine.sizes.lock().clone())
    }

    #[tokio::test]
    async fn what_is_held_in_vain_goes_back_and_the_balloon_is_empty_again() {
        assert_eq!(reclaimed(&FakeMachine::holding(700), 800, 0).await, (0, vec![476, 0]));
    }

    #[tokio::test]
    async fn the_guest_keeps_its_reserve_and_an_eighth() {
        assert_eq!(reclaimed(&FakeMachine::holding(1030), 320, 0).await, (94, vec![232, 0]));
        assert_eq!(reclaimed(&FakeMachine::holding(1030), 120, 0).await, (0, vec![]));
    }

    #[tokio::test]
    async fn nothing_is_asked_of_a_guest_that_has_given_back_already() {
        assert_eq!(reclaimed(&FakeMachine::holding(250), 800, 0).await, (0, vec![]));
    }

    #[tokio::test]
    async fn pages_that_were_not_held_make_the_balloon_larger() {
        let machine = FakeMachine { first: 100, ..FakeMachine::holding(500) };
        assert_eq!(reclaimed(&machine, 800, 0).await, (0, vec![276, 376, 0]));
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_not_asked_for_again_until_it_is_more() {
        let machine = FakeMachine { first: 800, ..FakeMachine::holding(500) };
        assert_eq!(reclaimed(&machine, 800, 0).await, (276, vec![276, 0]));
        assert_eq!(reclaimed(&machine, 800, 276).await, (276, vec![276, 0]));
        assert_eq!(reclaimed(&machine, 790, 276).await, (266, vec![276, 0]));
        assert_eq!(reclaimed(&machine, 864, 276).await.1.len(), 4);
    }

    #[tokio::test]
    async fn a_guest_that_cannot_is_left_alone() {
        let machine = FakeMachine { most: 50, ..FakeMachine::holding(700) };
        assert_eq!(reclaimed(&machine, 800, 0).await, (426, vec![50, 0]));
    }

    #[tokio::test]
    async fn a_guest_that_says_too_much_gets_no_larger_balloon_than_it_can_have() {
        let machine = FakeMachine::holding(1020);
        assert_eq!(reclaimed(&machine, u64::MAX, 0).await, (172, vec![848, 0]));
    }

    #[tokio::test]
    async fn pinned_memory_stays() {
        let machine = FakeMachine { pinned: true, ..FakeMachine::holding(700) };
        let freed = MemoryFreed { bytes: 800 * MIB, ..MemoryFreed::default() };
        let refused = reclaim(&machine, 1024 * MIB, &freed, 0).await;
        assert!(matches!(refused, Err(ReclaimError::Balloon(BalloonError::Pinned))));
        assert_eq!(*machine.sizes.lock(), [0]);
    }
}
