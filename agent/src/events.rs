//! What the host is told unasked, until it has been told: its long call takes one event after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::cgroup::Cgroup;
use crate::memory::Free;

/// Most strikes of the OOM killer kept for a host that does not ask.
const MOST_STRIKES: usize = 256;

/// Something the host is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel's OOM killer struck in this container.
    OutOfMemory(String),
    /// Containers have freed memory, and nobody has taken it since.
    MemoryFreed(Free),
}

/// The events that wait. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    struck: VecDeque<String>,
    /// The last word counts.
    freed: Option<Free>,
    closed: bool,
}

impl Events {
    /// Watches a container's cgroup for the OOM killer until aborted.
    pub fn watch_out_of_memory(&self, id: String, cgroup: Cgroup) -> AbortHandle {
        let events = self.clone();
        let watch = async move {
            let mut seen = 0;
            // An error is the end of the cgroup.
            while let Ok(count) = cgroup.oom_killed(seen).await {
                seen = count;
                events.out_of_memory(id.clone());
            }
        };
        tokio::spawn(watch).abort_handle()
    }

    /// So much memory is free, and has been for a while.
    pub fn memory_freed(&self, free: Free) {
        self.0.waiting.lock().freed = Some(free);
        self.0.changed.notify_waiters();
    }

    /// The next event. `None` when the sandbox is over.
    pub async fn next(&self) -> Option<Event> {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            {
                let mut waiting = self.0.waiting.lock();
                if let Some(id) = waiting.struck.pop_front() {
                    return Some(Event::OutOfMemory(id));
                }
                if let Some(free) = waiting.freed.take() {
                    return Some(Event::MemoryFreed(free));
                }
                if waiting.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// There are no more.
    pub fn close(&self) {
        self.0.waiting.lock().closed = true;
        self.0.changed.notify_waiters();
    }

    fn out_of_memory(&self, id: String) {
        let mut waiting = self.0.waiting.lock();
        if waiting.struck.len() < MOST_STRIKES && waiting.struck.back() != Some(&id) {
            waiting.struck.push_back(id);
        }
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out_of_memory(id: &str) -> Option<Event> {
        Some(Event::OutOfMemory(id.into()))
    }

    #[tokio::test]
    async fn strikes_are_told_in_order_and_kept_for_a_late_host() {
        let events = Events::default();
        events.out_of_memory("a".into());
        events.out_of_memory("a".into());
        events.out_of_memory("b".into());
        assert_eq!(events.next().await, out_of_memory("a"));
        assert_eq!(events.next().await, out_of_memory("b"));
        events.close();
        assert_eq!(events.next().await, None);
    }

    #[tokio::test]
    async fn of_free_memory_the_last_word_is_told() {
        let events = Events::default();
        events.memory_freed(Free { bytes: 1, reserve: 2 });
        events.out_of_memory("a".into());
        events.memory_freed(Free { bytes: 3, reserve: 2 });
        assert_eq!(events.next().await, out_of_memory("a"));
        assert_eq!(events.next().await, Some(Event::MemoryFreed(Free { bytes: 3, reserve: 2 })));
        events.close();
        assert_eq!(events.next().await, None);
    }

    #[tokio::test]
    async fn an_event_wakes_a_host_that_waits() {
        let events = Events::default();
        let waiting = tokio::spawn({
            let events = events.clone();
            async move { events.next().await }
        });
        tokio::task::yield_now().await;
        events.out_of_memory("late".into());
        assert_eq!(waiting.await.unwrap(), out_of_memory("late"));
    }

    #[tokio::test]
    async fn a_host_that_does_not_ask_costs_no_memory() {
        let events = Events::default();
        for number in 0..2 * MOST_STRIKES {
            events.out_of_memory(number.to_string());
        }
        assert_eq!(events.0.waiting.lock().struck.len(), MOST_STRIKES);
    }
}
