//! Memory that containers have freed: what the host could have back.
//!
//! The kernel reports free pages by itself, but leaves two seconds between one small round and the next. Nobody in
//! a guest is told of freed memory, so the counters are looked at when they may have changed: after something has
//! run in a container, and then no more often than every [`QUIET`]. While all containers sleep, so does this.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::cgroup;
use crate::guest;
use crate::sys::TaskSwitch;

/// How long memory has to stay free until the host is told. What is allocated again at once is better kept.
const QUIET: Duration = Duration::from_millis(500);

/// Bytes. Of less than this the host is not told: the kernel's own reports do for it.
const NOTABLE: u64 = 64 << 20;

/// The guest's free memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Free {
    /// All of it.
    pub bytes: u64,
    /// Of these, what the guest should keep: with less, its kernel begins to reclaim what is in use.
    pub reserve: u64,
}

/// Tells of free memory whenever enough was freed since it was last told, and little was allocated for a while.
/// `cpus_changed` says that a CPU came or went. Ends only if the kernel does not have what it takes.
pub async fn watch(tell: impl Fn(Free), cpus_changed: Arc<Notify>) {
    if let Err(error) = follow(tell, &cpus_changed).await {
        tracing::warn!("only the kernel tells of free memory: {error}");
    }
}

async fn follow(tell: impl Fn(Free), cpus_changed: &Notify) -> io::Result<()> {
    let mut ticks = tokio::time::interval(QUIET);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Counters::read()?;
    loop {
        let mut before = Counters::read()?;
        ticks.reset();
        let (changed, switches) = loop {
            ticks.tick().await;
            let changed = cpus_changed.notified();
            // What happens after the counters are read is another reason to read them. The first time, the kernel takes
            // its time.
            let look = || io::Result::Ok((look_for_switches()?, Counters::read()?));
            let (switches, now) = tokio::task::spawn_blocking(look).await??;
            if now.allocated.saturating_sub(before.allocated) < NOTABLE {
                if now.freed.saturating_sub(told.freed) >= NOTABLE {
                    told = now;
                    tell(Free::read()?);
                }
                break (changed, switches);
            }
            before = now;
        };
        let any = switches.into_iter().map(TaskSwitch::happened);
        // Of none, there is nothing to wait for but a CPU.
        let mut any: FuturesUnordered<_> = any.collect();
        tokio::select! {
            Some(happened) = any.next() => happened?,
            () = changed => {}
        }
    }
}

/// Looks, on every CPU, whether anything runs in a container.
fn look_for_switches() -> io::Result<Vec<TaskSwitch>> {
    let cgroup = cgroup::parent()?;
    let mut switches = Vec::new();
    for cpu in guest::online() {
        match TaskSwitch::of(&cgroup, cpu) {
            Ok(switch) => switches.push(switch),
            // It has just gone off line, of which there is word.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(switches)
}

impl Free {
    fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/zoneinfo")?, page_size()))
    }

    /// A zone's free pages, those that its CPUs keep in lists of their own, which can be an eighth of it, and its high
    /// watermark, where background reclaim stops.
    fn parse(text: &str, page: u64) -> Self {
        let mut free = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace().rev();
            let Some(Ok(pages)) = words.next().map(str::parse::<u64>) else { continue };
            let bytes = pages.saturating_mul(page);
            match (words.next(), words.next()) {
                (Some("free"), Some("pages")) | (Some("count:"), None) => {
                    free.bytes = free.bytes.saturating_add(bytes);
                }
                (Some("high"), None) => free.reserve = free.reserve.saturating_add(bytes),
                _ => {}
            }
        }
        free
    }
}

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Counters of the kernel's page allocator since boot, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counters {
    allocated: u64,
    freed: u64,
}

impl Counters {
    fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/vmstat")?, page_size()))
    }

    fn parse(text: &str, page: u64) -> Self {
        let mut counters = Self::default();
        for line in text.lines() {
            let Some((name, pages)) = line.split_once(' ') else { continue };
            let bytes = pages.parse::<u64>().unwrap_or(0).saturating_mul(page);
            match name {
                "pgfree" => counters.freed = bytes,
                // One a zone.
                _ if name.starts_with("pgalloc_") => {
                    counters.allocated = counters.allocated.saturating_add(bytes);
                }
                _ => {}
            }
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_whole_names_and_allocations_of_all_zones_added() {
        let text = "nr_free_pages 7\npgalloc_dma32 1\npgalloc_normal 2\npgalloc_movable 4\npgfree 5\npgfree_x 8\n\
                    allocstall_normal 3\nnonsense\n";
        assert_eq!(Counters::parse(text, 4096), Counters { allocated: 7 * 4096, freed: 5 * 4096 });
        assert_eq!(Counters::parse("", 4096), Counters::default());
    }

    #[test]
    fn free_is_what_zones_and_their_cpus_have_and_the_reserve_their_high_watermarks() {
        let text = "Node 0, zone    DMA32\n  per-node stats\n      nr_inactive_anon 900\n  pages free     1000\n\
                    \x20       boost    0\n        min      3\n        low      4\n        high     5\n        promo    6\n\
                    \x20       protection: (0, 0, 587, 587)\n      nr_free_pages 1000\n  pagesets\n    cpu: 0\n\
                    \x20             count:    20\n              high:     63\n              batch:    7\n\
                    \x20             high_min: 8\n              high_max: 9\n    cpu: 1\n              count:    30\n\
                    Node 0, zone   Normal\n  pages free     4000\n        high     50\n  pagesets\n    cpu: 0\n\
                    \x20             count:    2\n";
        assert_eq!(Free::parse(text, 4096), Free { bytes: 5052 * 4096, reserve: 55 * 4096 });
        assert_eq!(Free::parse("", 4096), Free::default());
    }

    #[test]
    fn this_kernel_counts() {
        let (counters, free) = (Counters::read().unwrap(), Free::read().unwrap());
        assert!(counters.allocated > free.bytes && counters.freed > 0, "{counters:?}");
        assert!(free.bytes > free.reserve && free.reserve > 0, "{free:?}");
    }
}
