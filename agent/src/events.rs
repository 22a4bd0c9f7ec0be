//! Events for the host, kept until its long call (`NextEvent`) takes them, one after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::cgroup::Cgroup;
use crate::memory::Free;

/// The most OOM events that are kept for a host that does not call.
const MOST_OOM_EVENTS: usize = 256;

/// An event for the host.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel's OOM killer killed a process of the container with this id.
    OutOfMemory(String),
    /// Memory was freed and has stayed free for a while.
    MemoryFreed(Free),
}

/// The queue of events. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    oom_killed: VecDeque<String>,
    /// Only the latest report is kept.
    freed: Option<Free>,
    closed: bool,
}

impl Events {
    /// Watches a container's cgroup for the OOM killer until aborted.
    pub fn watch_out_of_memory(&self, id: String, cgroup: Cgroup) -> AbortHandle {
        let events = self.clone();
        let watch = async move {
            let mut seen = 0;
            // An error means that the cgroup was removed.
            while let Ok(count) = cgroup.oom_killed(seen).await {
                seen = count;
                events.out_of_memory(id.clone());
            }
        };
        tokio::spawn(watch).abort_handle()
    }

    /// Queues a report of free memory, in place of an earlier one.
    pub fn memory_freed(&self, free: Free) {
        self.0.waiting.lock().freed = Some(free);
        self.0.changed.notify_waiters();
    }

    /// Waits for the next event. `None` once the queue is closed and empty.
    pub async fn next(&self) -> Option<Event> {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            {
                let mut waiting = self.0.waiting.lock();
                if let Some(id) = waiting.oom_killed.pop_front() {
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

    /// Closes the queue: no more events come.
    pub fn close(&self) {
        self.0.waiting.lock().closed = true;
        self.0.changed.notify_waiters();
    }

    fn out_of_memory(&self, id: String) {
        let mut waiting = self.0.waiting.lock();
        if waiting.oom_killed.len() < MOST_OOM_EVENTS && waiting.oom_killed.back() != Some(&id) {
            waiting.oom_killed.push_back(id);
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
    async fn oom_events_are_answered_in_order_and_kept_for_a_late_host() {
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
    async fn of_free_memory_the_last_report_is_answered() {
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
        for number in 0..2 * MOST_OOM_EVENTS {
            events.out_of_memory(number.to_string());
        }
        assert_eq!(events.0.waiting.lock().oom_killed.len(), MOST_OOM_EVENTS);
    }
}
