//! The threads that do devices' work, and what a device gives them to do.
//!
//! ```text
//!   machine ──start──► IoThread ◄──begin── Work ◄── a device, when its driver is ready
//!                         │                  │
//!                  Handler::start, ready,    └──end──► the handler comes back
//!                  again, stop
//! ```
//! Who owns what: the machine starts a thread before a device needs it, from a thread that may start threads, and
//! the thread's first act is its confinement. A device has a share in its thread for as long as it is in the
//! machine. While it is active its [`Handler`] belongs to the thread and nobody else touches it; the device keeps
//! the [`Work`], by which it gets the handler back.
//!
//! Who may call what when: [`IoThread::start`] and the end of a thread are for the machine. [`Work::begin`] may be
//! called from a vCPU's thread in the middle of a guest's register write: it sends and returns. [`Work::end`] may
//! be called from there too; it waits for the handler's call at hand and for [`Handler::stop`], but for no longer
//! than [`PATIENCE`]. Neither may be called from the device's own thread.
//!
//! What a thread is told happens in the order in which it was said, and a handler's end after everything that was
//! ready before: what the driver notified of before the device was reset, the last words of a guest that powers off,
//! is still taken. A handler that panics is dropped and its device is broken; other devices of the thread go on.
//! No timer and no polling: a thread with nothing to do sleeps in `epoll_wait`.
//!
//! The loop, the set of descriptors and the way in from other threads are the crate `event-manager`. What it has
//! not got is added here: handlers come back with their types, a budget that is spent comes back later
//! ([`Interest::again`]), panics stay with their device, and nobody waits for a thread that hangs. Its way in is not
//! the way out: it takes all requests there are before it looks at descriptors again, so an end that came that way
//! would overtake the driver's last notification. Two of its rules show: a descriptor is removed before it is closed,
//! as it keeps books by number, and a token has 32 bits. Its books cost some 50 ns an event (590 with the write, the
//! wait and the read of an eventfd, 540 with a bare `epoll_wait`).

mod handler;
pub(crate) mod os;
#[cfg(test)]
pub(crate) mod tests;
mod thread;
mod work;

pub use handler::Handler;
pub use handler::Interest;
pub use thread::Hung;
pub use thread::IoThread;
pub use work::Gone;
pub use work::Pausable;
pub use work::Work;

/// How long anybody waits for a thread that does not come back from what it does for a device: a file or a disk
/// that does not answer.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
