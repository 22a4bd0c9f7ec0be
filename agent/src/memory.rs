//! Reports of memory that was freed in the guest and that the host could reclaim.
//!
//! The kernel reports free pages by itself, but in small rounds two seconds apart. It has no event for freed memory,
//! so the agent reads its counters when they may have changed: after a task of a container has stopped running, and
//! then no more often than every [`QUIET`]. While all containers sleep, so does the agent.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::cgroup;
use crate::guest;
use crate::sys::TaskSwitch;

/// How long memory has to stay free before it is reported: memory that is allocated again at once is better kept, and
/// memory that is still being freed is better reported at once.
const QUIET: Duration = Duration::from_millis(500);

/// The least number of freed bytes that is reported; for less the kernel's own reports are enough.
const NOTABLE: u64 = 64 << 20;

/// The guest's free memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Free {
    /// All free memory, with that in the balloon.
    pub bytes: u64,
    /// The part of it that the balloon cannot get unless the kernel reclaims memory in use.
    pub reserve: u64,
}

/// Watches for freed memory.
#[derive(Debug, Default)]
pub struct FreedMemory {
    started: OnceLock<()>,
    again: Arc<Notify>,
}

impl FreedMemory {
    /// Starts to call `report` whenever enough memory was freed since the last report and little was allocated for a
    /// while. Further calls do nothing.
    pub fn start(&self, report: impl Fn(Free) + Send + Sync + 'static) {
        let again = self.again.clone();
        self.started.get_or_init(|| {
            tokio::spawn(async move {
                if let Err(error) = follow(report, &again).await {
                    tracing::warn!("free memory is reported by the kernel alone from now on: {error}");
                }
            });
        });
    }

    /// Reads the counters again although no task of a container has run: a CPU went online or offline, or the agent may
    /// have freed memory.
    pub fn look_again(&self) {
        self.again.notify_waiters();
    }
}

async fn follow(report: impl Fn(Free), again: &Notify) -> io::Result<()> {
    let mut ticks = tokio::time::interval(QUIET);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut switches = Switches::default();
    let mut reported = Counters::read()?;
    loop {
        ticks.reset();
        let mut before = Counters::read()?;
        loop {
            ticks.tick().await;
            let now = Counters::read()?;
            let allocated = now.allocated.saturating_sub(before.allocated);
            let freed = now.freed.saturating_sub(before.freed);
            before = now;
            if allocated.max(freed) < NOTABLE {
                break;
            }
        }
        let again = again.notified();
        switches.watch().await?;
        // A task switch from now on wakes the wait below.
        let now = Counters::read()?;
        if now.freed.saturating_sub(reported.freed) >= NOTABLE {
            reported = now;
            report(Free::read(now.in_balloon)?);
        }
        tokio::select! {
            switched = switches.next() => switched?,
            () = again => {}
        }
    }
}

/// Waits until a task of a container has stopped running.
#[derive(Default)]
struct Switches {
    /// The CPUs that were online when the events were opened.
    cpus: Vec<u32>,
    of_cpus: Vec<TaskSwitch>,
}

impl Switches {
    /// Arms the events: [`Self::next`] returns for a task that stops running from now on.
    async fn watch(&mut self) -> io::Result<()> {
        let online = guest::online();
        if self.cpus != online {
            let cpus = online.clone();
            // Opening and closing events blocks.
            let old = std::mem::take(&mut self.of_cpus);
            let open = move || {
                drop(old);
                open(&cpus)
            };
            self.of_cpus = tokio::task::spawn_blocking(open).await??;
            self.cpus = online;
        }
        self.of_cpus.iter_mut().try_for_each(TaskSwitch::arm)
    }

    /// Returns when a task of a container has stopped running since [`Self::watch`].
    async fn next(&mut self) -> io::Result<()> {
        let mut any: FuturesUnordered<_> = self.of_cpus.iter_mut().map(TaskSwitch::happened).collect();
        match any.next().await {
            Some(happened) => happened?,
            // No event is open. A CPU that comes online calls `look_again`.
            None => std::future::pending().await,
        }
        // Events of other CPUs that have fired as well need no further look.
        while let Some(Some(happened)) = any.next().now_or_never() {
            happened?;
        }
        Ok(())
    }
}

/// Opens an event on each of these CPUs.
fn open(cpus: &[u32]) -> io::Result<Vec<TaskSwitch>> {
    let cgroup = cgroup::parent()?;
    let mut opened = Vec::new();
    for &cpu in cpus {
        match TaskSwitch::open(&cgroup, cpu) {
            Ok(switch) => opened.push(switch),
            // The CPU has just gone offline.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(opened)
}

impl Free {
    fn read(in_balloon: u64) -> io::Result<Self> {
        let zones = Self::parse(&std::fs::read_to_string("/proc/zoneinfo")?, page_size());
        Ok(Self { bytes: zones.bytes.saturating_add(in_balloon), ..zones })
    }

    /// A zone has free pages, and each CPU has a list of more. The reserve is the pages in the CPUs' lists, which do
    /// not leave them at once, the pages below the zone's high watermark, at which background reclaim stops, and the
    /// pages that the zone keeps for allocations which need its memory (`protection`).
    fn parse(text: &str, page: u64) -> Self {
        let mut free = Self::default();
        let bytes = |pages: Option<&str>| {
            let number = |text: &str| text.trim_matches(['(', ')', ',']).parse::<u64>().unwrap_or(0);
            pages.map_or(0, number).saturating_mul(page)
        };
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("pages"), Some("free")) => free.bytes = free.bytes.saturating_add(bytes(words.next())),
                (Some("count:"), pages) => {
                    free.bytes = free.bytes.saturating_add(bytes(pages));
                    free.reserve = free.reserve.saturating_add(bytes(pages));
                }
                (Some("high"), pages) => free.reserve = free.reserve.saturating_add(bytes(pages)),
                (Some("protection:"), first) => {
                    let most = words.map(Some).chain([first]).map(bytes).max();
                    free.reserve = free.reserve.saturating_add(most.unwrap_or(0));
                }
                _ => {}
            }
        }
        free
    }
}

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Counters of the kernel's page allocator, in bytes, without the balloon's allocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counters {
    /// Since boot.
    allocated: u64,
    /// Since boot.
    freed: u64,
    /// Now.
    in_balloon: u64,
}

impl Counters {
    fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/vmstat")?, page_size()))
    }

    fn parse(text: &str, page: u64) -> Self {
        let (mut counters, mut inflated, mut deflated) = (Self::default(), 0, 0);
        for line in text.lines() {
            let Some((name, pages)) = line.split_once(' ') else { continue };
            let bytes = pages.parse::<u64>().unwrap_or(0).saturating_mul(page);
            match name {
                "pgfree" => counters.freed = bytes,
                "balloon_inflate" => inflated = bytes,
                "balloon_deflate" => deflated = bytes,
                // One line for each zone.
                _ if name.starts_with("pgalloc_") => {
                    counters.allocated = counters.allocated.saturating_add(bytes);
                }
                _ => {}
            }
        }
        counters.allocated = counters.allocated.saturating_sub(inflated);
        counters.freed = counters.freed.saturating_sub(deflated);
        counters.in_balloon = inflated.saturating_sub(deflated);
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_whole_names_without_what_the_balloon_does() {
        let text = "nr_free_pages 7\npgalloc_dma32 10\npgalloc_normal 20\npgalloc_movable 40\npgfree 50\n\
                    pgfree_x 8\nallocstall_normal 3\nnonsense\nballoon_inflate 9\nballoon_deflate 4\n";
        let counters = Counters { allocated: 61 * 4096, freed: 46 * 4096, in_balloon: 5 * 4096 };
        assert_eq!(Counters::parse(text, 4096), counters);
        assert_eq!(Counters::parse("", 4096), Counters::default());
    }

    #[test]
    fn free_is_what_zones_and_their_cpus_have_and_not_all_of_it_can_be_had() {
        let text = "Node 0, zone    DMA32\n  per-node stats\n      nr_inactive_anon 900\n  pages free     1000\n\
                    \x20       boost    0\n        min      3\n        low      4\n        high     5\n        promo    6\n\
                    \x20       protection: (0, 0, 587, 400)\n      nr_free_pages 1000\n  pagesets\n    cpu: 0\n\
                    \x20             count:    20\n              high:     63\n              batch:    7\n\
                    \x20             high_min: 8\n              high_max: 9\n    cpu: 1\n              count:    30\n\
                    Node 0, zone   Normal\n  pages free     4000\n        high     50\n  pagesets\n    cpu: 0\n\
                    \x20             count:    2\n        protection: (0, 0, 0, 0)\n";
        let free = Free { bytes: 5052 * 4096, reserve: (5 + 50 + 587 + 20 + 30 + 2) * 4096 };
        assert_eq!(Free::parse(text, 4096), free);
        assert_eq!(Free::parse("", 4096), Free::default());
    }

    #[test]
    fn this_kernel_counts() {
        let (counters, free) = (Counters::read().unwrap(), Free::read(0).unwrap());
        assert!(counters.allocated > 0 && counters.freed > 0, "{counters:?}");
        assert!(free.bytes > 0 && free.reserve > 0, "{free:?}");
    }
}
