//! What a device's thread has of its host: threads, locks, and what wakes them. In one place, so that a check can
//! compile the code that uses it again with others, whose order it chooses.

use std::time::Duration;

use event_manager::EventManager;
use event_manager::MutEventSubscriber;

pub(crate) use std::os::unix::net::UnixStream;
pub(crate) use std::sync::mpsc;
pub(crate) use std::thread;

pub(crate) use parking_lot::Mutex;
pub(crate) use vmm_sys_util::eventfd::EventFd;

/// Waits for events and has them handled.
pub(crate) fn run<S: MutEventSubscriber>(manager: &mut EventManager<S>) -> event_manager::Result<usize> {
    manager.run()
}

/// Waits for an answer, but not for ever.
pub(crate) fn receive<T>(
    answer: &mpsc::Receiver<T>,
    patience: Duration,
) -> Result<T, mpsc::RecvTimeoutError> {
    answer.recv_timeout(patience)
}
