//! The threads on which this machine's devices have their work done. They are started when a device is attached, by
//! whoever attaches it, and never by a vCPU: its list has no `clone`.

use std::io;
use std::sync::Arc;

use kiai_devices::io_thread::IoThread;
use kiai_devices::platform::Role;
use kiai_devices::platform::Threads;
use parking_lot::Mutex;

use crate::memory::Reservation;
use crate::seccomp;

/// Starts threads, each confined to what its role needs.
pub(super) struct IoThreads {
    /// The one thread of devices that are idle most of the time, from the first of them on.
    shared: Mutex<Option<Arc<IoThread>>>,
    /// Addresses that stay reserved for a thread that hangs when everybody else has gone.
    ram: Vec<Arc<Reservation>>,
}

impl IoThreads {
    /// For devices that reach guest RAM at addresses of `ram`.
    pub(super) fn new(ram: Vec<Arc<Reservation>>) -> Self {
        Self { shared: Mutex::default(), ram }
    }

    /// No device is left: the shared thread ends with the last that holds it.
    pub(super) fn let_go(&self) {
        self.shared.lock().take();
    }

    fn start(&self, role: Role) -> io::Result<Arc<IoThread>> {
        let ram = self.ram.clone();
        let begin = move || seccomp::confine(role.into()).map(|()| ram);
        IoThread::start(role.name(), begin).map(Arc::new)
    }
}

impl Threads for IoThreads {
    fn thread(&self, role: Role) -> io::Result<Arc<IoThread>> {
        if role != Role::Shared {
            return self.start(role);
        }
        let mut shared = self.shared.lock();
        match &*shared {
            Some(thread) => Ok(thread.clone()),
            None => Ok(shared.insert(self.start(role)?).clone()),
        }
    }
}
