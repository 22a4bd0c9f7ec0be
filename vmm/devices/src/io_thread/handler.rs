//! What a device does on its thread, and the descriptors it waits for there.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;

use event_manager::EventOps;
use event_manager::EventSet;
use event_manager::Events;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::os::EventFd;

/// Tokens of a handler's own events; those it gives are smaller.
pub(super) const END: u32 = u32::MAX;
pub(super) const AGAIN: u32 = u32::MAX - 1;

/// What a device does on its thread. No call may wait for the guest or for another device.
pub trait Handler: Send + 'static {
    /// The first call, and the first after a pause: work may be waiting already.
    fn start(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()>;
    /// A file descriptor registered with `token` is ready. `Break` ends the work (the device is broken and has
    /// said so to the driver).
    fn ready(&mut self, token: u32, events: EventSet, interest: &mut Interest<'_>) -> ControlFlow<()>;
    /// What [`Interest::again`] asked for. Devices that never ask do nothing.
    fn again(&mut self, _interest: &mut Interest<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    /// The last call for a while: what is under way is finished, and the driver told of it. Nothing reaches guest
    /// memory when it returns. No descriptor is waited for any more; [`Handler::start`] comes next, or
    /// [`Handler::stop`].
    fn pause(&mut self) {}
    /// The last call, after a `Break` or when the device is reset: nothing that is under way may reach guest memory
    /// when it returns. No descriptor is waited for any more. A handler that panicked is dropped without it.
    fn stop(&mut self) {}
}

/// The descriptors one handler waits for.
pub struct Interest<'a> {
    set: &'a mut dyn Set,
    watched: &'a mut Watched,
}

/// What stays of an [`Interest`] between two calls.
pub(super) struct Watched {
    descriptors: BTreeSet<RawFd>,
    again: EventFd,
    /// Signalled when the handler is to be given back.
    pub(super) end: Arc<EventFd>,
}

/// A thread's descriptors, as one of its handlers may change them.
pub(super) trait Set {
    fn add(&mut self, events: Events) -> event_manager::Result<()>;
    fn remove(&mut self, events: Events) -> event_manager::Result<()>;
}

impl Set for EventOps<'_> {
    fn add(&mut self, events: Events) -> event_manager::Result<()> {
        EventOps::add(self, events)
    }

    fn remove(&mut self, events: Events) -> event_manager::Result<()> {
        EventOps::remove(self, events)
    }
}

impl Watched {
    pub(super) fn new() -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK);
        Ok(Self { descriptors: BTreeSet::new(), again: event()?, end: Arc::new(event()?) })
    }

    /// To be called before the work that [`Interest::again`] asked for: what is asked for during it is asked for
    /// anew.
    pub(super) fn clear_again(&self) {
        let _ = self.again.read();
    }
}

impl<'a> Interest<'a> {
    pub(super) fn new(set: &'a mut dyn Set, watched: &'a mut Watched) -> Self {
        Self { set, watched }
    }

    /// Has [`Handler::again`] called once everything else that waits, being told to stop above all, has had its
    /// turn. For a handler that has spent its budget.
    pub fn again(&self) {
        // A full counter means that it is asked for already.
        let _ = self.watched.again.write(1);
    }

    /// Adds a descriptor. The caller keeps it open until it is removed or the work has ended. An error if it is
    /// there already.
    pub fn add(&mut self, fd: RawFd, token: u32, events: EventSet) -> io::Result<()> {
        self.set.add(Events::with_data_raw(fd, token, events)).map_err(io::Error::other)?;
        self.watched.descriptors.insert(fd);
        Ok(())
    }

    /// Removes a descriptor; call it before closing one. What was ready of it is forgotten.
    pub fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        self.watched.descriptors.remove(&fd);
        self.set.remove(Events::empty_raw(fd)).map_err(io::Error::other)
    }

    /// What a handler begins with. Its end comes last: whoever is ready when it begins is heard before.
    pub(super) fn add_all(&mut self, descriptors: &[(RawFd, u32)]) -> io::Result<()> {
        self.add(self.watched.again.as_raw_fd(), AGAIN, EventSet::IN)?;
        for &(fd, token) in descriptors {
            self.add(fd, token, EventSet::IN)?;
        }
        let end = Events::with_data_raw(self.watched.end.as_raw_fd(), END, EventSet::IN);
        self.set.add(end).map_err(io::Error::other)
    }

    /// From now on only its end is waited for.
    pub(super) fn remove_all(&mut self) {
        for fd in std::mem::take(&mut self.watched.descriptors) {
            // It is open: whoever closes one has removed it before.
            let _ = self.set.remove(Events::empty_raw(fd));
        }
    }
}
