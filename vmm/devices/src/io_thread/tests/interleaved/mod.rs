//! The code of devices' threads, compiled again with threads, locks, events and sockets whose order a check chooses.
//! The loop is `event-manager`'s own.

pub(crate) mod os;
mod work_checks;

#[path = "../../handler.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
#[expect(unreachable_pub, reason = "the product's callers are elsewhere")]
mod handler;

#[path = "../../thread.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
#[expect(unreachable_pub, reason = "the product's callers are elsewhere")]
mod thread;

#[path = "../../work.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
#[expect(unreachable_pub, reason = "the product's callers are elsewhere")]
mod work;

use std::os::fd::RawFd;
use std::sync::Arc;

pub(crate) use handler::Handler;
pub(crate) use handler::Interest;
pub(crate) use thread::IoThread;
pub(crate) use work::Pausable;
pub(crate) use work::Work;

use super::super::PATIENCE;

/// A handler on a thread of its own. Dropping ends both.
pub(crate) struct Running<H: Handler> {
    work: Work<H>,
    _thread: Arc<IoThread>,
}

impl<H: Handler> Running<H> {
    pub(crate) fn begin(handler: H, descriptors: &[(RawFd, u32)]) -> Self {
        Self::on(&Arc::new(IoThread::start("device", || Ok(())).unwrap()), handler, descriptors)
    }

    pub(crate) fn on(thread: &Arc<IoThread>, handler: H, descriptors: &[(RawFd, u32)]) -> Self {
        let mut work = Work::default();
        work.begin((thread, "device"), handler, descriptors, || ()).unwrap();
        Self { work, _thread: thread.clone() }
    }

    /// Takes the handler off its thread and gives it back; what it is told of in between waits.
    pub(crate) fn pause_and_resume(&mut self) {
        self.work.pause().unwrap();
        assert!(self.work.paused().is_some());
        self.work.resume().unwrap();
    }

    /// `None` if it panicked.
    pub(crate) fn stop(mut self) -> Option<H> {
        self.work.end().unwrap()
    }
}
