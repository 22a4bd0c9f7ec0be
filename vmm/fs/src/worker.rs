//! The thread that serves the queues: waits for the driver's notifications, works through what is there.
//!
//! File system calls block it, and only it. Nothing it opens can block for good: special files are not opened,
//! regular ones without waiting.

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use kiai_devices::platform::GuestMemory;
use kiai_devices::virtio::device::VirtioInterrupt;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::identity;
use crate::requests::{FuseServer, Malformed, Requests, Served};
use crate::view::{RamView, ViewError};

/// A queue and how the driver and the device reach each other about it.
pub(crate) struct ServedQueue {
    pub(crate) index: u16,
    pub(crate) requests: Requests,
    pub(crate) notification: Arc<EventFd>,
}

/// The running thread; stopped and joined by [`Worker::stop`].
pub(crate) struct Worker {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

/// The order to stop: the flag is seen between two requests, the event while waiting.
struct Stop {
    flag: AtomicBool,
    event: EventFd,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Driver(#[from] Malformed),
    #[error(transparent)]
    View(#[from] ViewError),
    #[error("cannot wait for notifications")]
    Wait(#[source] io::Error),
    #[error("cannot prepare the thread")]
    Prepare(#[source] io::Error),
}

impl Worker {
    /// Starts serving.
    pub(crate) fn start(
        server: FuseServer,
        queues: Vec<ServedQueue>,
        memory: GuestMemory,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> io::Result<Worker> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let stop = Arc::new(Stop { flag: AtomicBool::new(false), event });
        let mut service = Service { server, memory, interrupt, stop: Arc::clone(&stop) };
        let thread =
            std::thread::Builder::new().name("virtio-fs".into()).spawn(move || service.run(queues))?;
        Ok(Worker { stop, thread })
    }

    /// Stops; when it returns, nothing touches guest memory any more. Waits for the one request being served.
    pub(crate) fn stop(self) {
        self.stop.flag.store(true, Ordering::Release);
        // The counter cannot overflow by one write, so this cannot fail.
        let _ = self.stop.event.write(1);
        let _ = self.thread.join();
    }
}

struct Service {
    server: FuseServer,
    memory: GuestMemory,
    interrupt: Arc<dyn VirtioInterrupt>,
    stop: Arc<Stop>,
}

impl Service {
    fn run(&mut self, mut queues: Vec<ServedQueue>) {
        // The server behind us is large and not ours; should it panic, the device fails, not the machine.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve_until_stopped(&mut queues)));
        match ended {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => tracing::warn!(error = %failure, "virtio-fs stopped"),
            Err(_) => tracing::error!("virtio-fs stopped: the FUSE server panicked"),
        }
        self.interrupt.needs_reset();
    }

    fn serve_until_stopped(&self, queues: &mut [ServedQueue]) -> Result<(), Failure> {
        identity::prepare_thread().map_err(Failure::Prepare)?;
        let events = self.events(queues).map_err(Failure::Wait)?;
        while !self.stopped() {
            for queue in &mut *queues {
                // Cleared before looking, so that a later notification is not lost.
                let _ = queue.notification.read();
                self.drain(queue)?;
            }
            self.wait(&events)?;
        }
        Ok(())
    }

    fn events(&self, queues: &[ServedQueue]) -> io::Result<Epoll> {
        let events = Epoll::new()?;
        let notifications = queues.iter().map(|queue| queue.notification.as_raw_fd());
        for fd in notifications.chain([self.stop.event.as_raw_fd()]) {
            events.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        Ok(events)
    }

    fn drain(&self, queue: &mut ServedQueue) -> Result<(), Failure> {
        let snapshot = self.memory.memory();
        let ram = RamView::of(&snapshot)?;
        loop {
            queue.requests.disable_notification(&ram)?;
            while !self.stopped() {
                match queue.requests.serve(&self.server, &ram)? {
                    Served::Nothing => break,
                    Served::One { notify: true } => self.interrupt.used_buffers(queue.index),
                    Served::One { notify: false } => {}
                }
            }
            if self.stopped() || !queue.requests.enable_notification(&ram)? {
                return Ok(());
            }
        }
    }

    fn wait(&self, events: &Epoll) -> Result<(), Failure> {
        // Which of them it was does not matter: all are looked at.
        match events.wait(-1, &mut [EpollEvent::default()]) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(Failure::Wait(error)),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.flag.load(Ordering::Acquire)
    }
}
