//! What happens on the device's thread: serves the directory, and works through the queues whenever the driver
//! notifies.
//!
//! File system calls block it, and only it. Nothing it opens can block for good: special files are not opened,
//! regular ones without waiting.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use kiai_devices::io_thread::Handler;
use kiai_devices::io_thread::Interest;
use kiai_devices::log_limit::LogLimit;
use kiai_devices::platform::GuestMemory;
use kiai_devices::virtio::device::Position;
use kiai_devices::virtio::device::VirtioInterrupt;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::identity;
use crate::requests::FuseServer;
use crate::requests::Malformed;
use crate::requests::Requests;
use crate::requests::Served;
use crate::view::RamView;
use crate::view::ViewError;

/// A queue and how the driver reaches the device about it.
pub(crate) struct ServedQueue {
    pub(crate) index: u16,
    pub(crate) requests: Requests,
    pub(crate) notification: Arc<EventFd>,
}

/// All that one activation needs.
pub(crate) struct Service {
    pub(crate) directory: Arc<File>,
    /// How many descriptors the guest may hold.
    pub(crate) descriptors: usize,
    /// Made on the thread, as it opens files.
    pub(crate) server: Option<FuseServer>,
    pub(crate) queues: Vec<ServedQueue>,
    pub(crate) memory: GuestMemory,
    pub(crate) interrupt: Arc<dyn VirtioInterrupt>,
    /// Set when the device is reset: the thread ends after the request at hand, whatever else is waiting.
    pub(crate) stop: Arc<AtomicBool>,
    /// Set while the guest has the directory mounted.
    pub(crate) mounted: Arc<AtomicBool>,
}

/// A driver can reset the device and break the rules again, for ever.
static REPORTS: LogLimit = LogLimit::new();

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Driver(#[from] Malformed),
    #[error(transparent)]
    View(#[from] ViewError),
}

impl Service {
    /// What to wait for: each queue's notification, by its place in `queues`.
    pub(crate) fn descriptors(&self) -> Vec<(RawFd, u32)> {
        self.queues.iter().map(|queue| queue.notification.as_raw_fd()).zip(0..).collect()
    }

    /// Where the queues are.
    pub(crate) fn positions(&self) -> Vec<Position> {
        self.queues.iter().map(|queue| queue.requests.position(queue.index)).collect()
    }

    /// Serves the queue at `place` until it is empty; on a failure the device asks to be reset.
    fn serve(&mut self, place: usize) -> ControlFlow<()> {
        let Err(failure) = self.drain(place) else { return ControlFlow::Continue(()) };
        if REPORTS.allows() {
            tracing::warn!(error = %failure, "virtio-fs stopped");
        }
        self.interrupt.needs_reset();
        ControlFlow::Break(())
    }

    /// Makes thread and server ready.
    fn prepare(&mut self) -> io::Result<()> {
        identity::prepare_thread()?;
        // There still is one after a pause.
        if self.server.is_none() {
            self.server = Some(FuseServer::new(&self.directory, self.descriptors, self.mounted.clone())?);
        }
        Ok(())
    }

    fn drain(&mut self, place: usize) -> Result<(), Failure> {
        let Some(server) = &self.server else { return Ok(()) };
        let queue = &mut self.queues[place];
        // Cleared before looking, so that a later notification is not lost. A spurious one leaves nothing.
        let _ = queue.notification.read();
        let snapshot = self.memory.memory();
        let ram = RamView::of(&snapshot)?;
        loop {
            queue.requests.disable_notification(&ram)?;
            loop {
                if self.stop.load(Ordering::Acquire) {
                    return Ok(());
                }
                match queue.requests.serve(server, &ram)? {
                    Served::Nothing => break,
                    Served::One { notify: true } => self.interrupt.used_buffers(queue.index),
                    Served::One { notify: false } => {}
                }
            }
            if !queue.requests.enable_notification(&ram)? {
                return Ok(());
            }
        }
    }
}

impl Handler for Service {
    fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
        if let Err(error) = self.prepare() {
            if REPORTS.allows() {
                tracing::error!(%error, "virtio-fs: the directory cannot be served");
            }
            self.interrupt.needs_reset();
            return ControlFlow::Break(());
        }
        (0..self.queues.len()).try_for_each(|place| self.serve(place))
    }

    fn ready(&mut self, place: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        self.serve(usize::try_from(place).expect("one of the places given"))
    }

    fn stop(&mut self) {
        // What the guest had open is closed here.
        self.server = None;
        self.mounted.store(false, Ordering::Release);
    }
}
