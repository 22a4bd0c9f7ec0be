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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::ControlFlow;
    use std::sync::mpsc;

    use kiai_devices::io_thread::Handler;
    use kiai_devices::io_thread::Interest;
    use kiai_devices::io_thread::Work;
    use rustix::thread::Pid;
    use vmm_sys_util::epoll::EventSet;

    use super::*;

    /// Says who it is.
    struct Named(mpsc::Sender<Pid>);

    impl Handler for Named {
        fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
            let _ = self.0.send(rustix::thread::gettid());
            ControlFlow::Continue(())
        }

        fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
            unreachable!("it waits for nothing")
        }
    }

    fn id(thread: &Arc<IoThread>) -> Pid {
        let (sender, id) = mpsc::channel();
        let mut work = Work::default();
        work.begin((thread, "test"), Named(sender), &[], || ()).unwrap();
        id.recv().unwrap()
    }

    #[test]
    fn each_thread_is_confined_and_idle_devices_share_one() {
        seccomp::prepare().unwrap();
        let threads = IoThreads::new(Vec::new());
        for role in Role::ALL {
            let pair = [threads.thread(role).unwrap(), threads.thread(role).unwrap()];
            let [one, other] = pair.each_ref().map(id);
            assert_eq!(one == other, role == Role::Shared, "{role:?}");
            let of = |file: &str| {
                fs::read_to_string(format!("/proc/self/task/{}/{file}", one.as_raw_nonzero())).unwrap()
            };
            assert_eq!(of("comm").trim(), role.name());
            assert!(of("status").contains("Seccomp:\t2"), "{role:?}: {}", of("status"));
        }
    }

    #[test]
    fn the_shared_thread_ends_with_its_last_device() {
        let ram = Arc::new(Reservation::new(4096).unwrap());
        let threads = IoThreads::new(vec![ram.clone()]);
        seccomp::prepare().unwrap();
        let thread = threads.thread(Role::Shared).unwrap();
        threads.let_go();
        let first = id(&thread);
        assert_eq!(id(&thread), first, "a device still has it");
        drop(threads);
        assert_eq!(Arc::strong_count(&ram), 2, "and it keeps what it may reach");
        drop(thread);
        assert_eq!(Arc::strong_count(&ram), 1);
    }
}
