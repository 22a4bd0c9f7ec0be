//! Memory the guest has freed goes back to the host: for a moment it is put into the guest's balloon.
//!
//! The guest does not know which of its free pages the host still holds, and the host not which of those it holds
//! are free. How many that are both is known: the host holds so many, and the guest uses so many.

use std::future::Future;
use std::io;
use std::time::Duration;

use kiai_vmm::BalloonError;

use super::Sandbox;
use crate::agent::message::MemoryFreed;
use crate::failure::chain;

const MIB: u64 = 1 << 20;

/// Less than this is not worth the guest's work. It also is more than what the reckoning is wrong by: this process has
/// some memory besides the guest's RAM, and the host holds the guest's in pages of 2 MiB.
const NOTABLE: u64 = 64 * MIB;

/// What the guest keeps at hand, besides its own reserve, for whoever allocates meanwhile.
const AT_HAND: u64 = 16 * MIB;

/// How long the guest may take to fill or empty its balloon. Until then what is in it is the host's, and the next
/// word of free memory says how much there is still to have.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why memory was not given back.
#[derive(Debug, thiserror::Error)]
enum GiveBackError {
    #[error("read /proc/self/statm")]
    Held(#[source] io::Error),
    #[error(transparent)]
    Balloon(#[from] BalloonError),
}

impl Sandbox {
    /// Has the guest give back what it says is free. Not while the machine's size changes, nor twice at a time: that
    /// leaves it to the guest's kernel, which is slower.
    pub async fn give_back(&self, freed: &MemoryFreed) {
        let Ok(_same_size) = self.pod.try_lock() else { return };
        let memory = u64::from(self.vm.0.memory().plugged) * MIB;
        match give_back(self, memory, freed).await {
            Ok(0) => {}
            Ok(bytes) => tracing::debug!("{} MiB of the guest's went back", bytes / MIB),
            Err(GiveBackError::Balloon(error)) => tracing::debug!("nothing is given back: {error}"),
            Err(error) => tracing::warn!(error = %chain(&error), "nothing is given back"),
        }
    }
}

/// A machine with a balloon in it.
trait Ballooned: Sync {
    /// Bytes of memory the host holds for it.
    fn held(&self) -> io::Result<u64>;
    /// Gives the balloon a size, as far as the guest does it in time; the size it has then.
    fn resize_balloon(&self, bytes: u64) -> impl Future<Output = Result<u64, BalloonError>> + Send;
}

impl Ballooned for Sandbox {
    /// Anonymous memory of this process, which has one machine: the guest's RAM and some MiB more. The host's pool of
    /// huge pages is not in it, of which nothing could be given back either.
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

    async fn resize_balloon(&self, bytes: u64) -> Result<u64, BalloonError> {
        let vm = self.vm.0.clone();
        vm.request_balloon(bytes)?;
        let waited = tokio::task::spawn_blocking(move || vm.await_balloon(PATIENCE)).await;
        Ok(waited.unwrap_or(0))
    }
}

/// Returns how many bytes went back.
async fn give_back(machine: &impl Ballooned, memory: u64, freed: &MemoryFreed) -> Result<u64, GiveBackError> {
    let used = memory.saturating_sub(freed.bytes);
    let held_in_vain = || Ok(machine.held().map_err(GiveBackError::Held)?.saturating_sub(used));
    let before = held_in_vain()?;
    let room = room(memory, freed);
    if before.min(room) < NOTABLE {
        return Ok(0);
    }
    let inflated = inflate(machine, room, held_in_vain).await;
    machine.resize_balloon(0).await?;
    inflated?;
    Ok(before.saturating_sub(held_in_vain()?))
}

/// As large as the balloon may become.
fn room(memory: u64, freed: &MemoryFreed) -> u64 {
    freed.bytes.min(memory).saturating_sub(freed.reserve).saturating_sub(AT_HAND)
}

/// Inflates the balloon until hardly anything is held in vain. Which free pages go into it is the guest's choice, and
/// of some nothing comes back, so it may have to become larger: as long as more than half of that is to some purpose.
async fn inflate(
    machine: &impl Ballooned,
    room: u64,
    held_in_vain: impl Fn() -> Result<u64, GiveBackError>,
) -> Result<(), GiveBackError> {
    let mut size = 0;
    let mut left = held_in_vain()?;
    loop {
        let next = room.min(size + left) / MIB * MIB;
        if next == size {
            return Ok(());
        }
        let reached = machine.resize_balloon(next).await?;
        let before = std::mem::replace(&mut left, held_in_vain()?);
        let gained = before.saturating_sub(left);
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

    /// A machine of 1024 MiB. Sizes are in MiB.
    struct FakeMachine {
        held: Mutex<u64>,
        /// Free pages that the host does not hold, which go into the balloon first.
        first: u64,
        /// The balloon does not become larger than this.
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

        async fn resize_balloon(&self, bytes: u64) -> Result<u64, BalloonError> {
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

    /// What went back, and the sizes the balloon had.
    async fn given(machine: &FakeMachine, free: u64) -> (u64, Vec<u64>) {
        let freed = MemoryFreed { bytes: free * MIB, reserve: 48 * MIB, ..MemoryFreed::default() };
        let given = give_back(machine, 1024 * MIB, &freed).await;
        (given.map_or(0, |bytes| bytes / MIB), machine.sizes.lock().clone())
    }

    #[tokio::test]
    async fn what_is_held_in_vain_goes_back_and_the_balloon_is_empty_again() {
        assert_eq!(given(&FakeMachine::holding(700), 800).await, (476, vec![476, 0]));
    }

    #[tokio::test]
    async fn the_guest_keeps_its_reserve() {
        assert_eq!(given(&FakeMachine::holding(1030), 300).await, (236, vec![236, 0]));
        assert_eq!(given(&FakeMachine::holding(1030), 90).await, (0, vec![]));
    }

    #[tokio::test]
    async fn nothing_is_asked_of_a_guest_that_has_given_back_already() {
        assert_eq!(given(&FakeMachine::holding(250), 800).await, (0, vec![]));
    }

    #[tokio::test]
    async fn pages_that_were_not_held_make_the_balloon_larger() {
        let machine = FakeMachine { first: 100, ..FakeMachine::holding(500) };
        assert_eq!(given(&machine, 800).await, (276, vec![276, 376, 0]));
    }

    #[tokio::test]
    async fn a_guest_that_cannot_is_left_alone() {
        let machine = FakeMachine { most: 50, ..FakeMachine::holding(700) };
        assert_eq!(given(&machine, 800).await, (50, vec![50, 0]));
    }

    #[tokio::test]
    async fn a_guest_that_says_too_much_gets_no_larger_balloon_than_it_can_have() {
        assert_eq!(given(&FakeMachine::holding(1020), u64::MAX >> 20).await, (960, vec![960, 0]));
    }

    #[tokio::test]
    async fn pinned_memory_stays() {
        let machine = FakeMachine { pinned: true, ..FakeMachine::holding(700) };
        assert_eq!(given(&machine, 800).await, (0, vec![0]));
    }
}
