//! What a virtio device is to its transport, and what it gets when the driver is ready.
//!
//! ```text
//!   new ──────────► idle ──activate (DRIVER_OK)──► active
//!                    ▲                                │
//!                    └──────── reset (status = 0) ────┘
//! ```
//! The transport owns status, features, queue registers and their freezing (virtio 1.2 §2.1, §4.1); a device
//! sees only the outcome.

use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::io_thread::Gone;
use crate::io_thread::Hung;
use crate::io_thread::IoThread;
use crate::platform::GuestMemory;
use crate::platform::Role;

/// A virtio device (virtio 1.2 §5). The transport calls it under a lock, one call at a time.
pub trait VirtioDevice: Send {
    /// Device id (virtio 1.2 §5, table of device ids).
    fn device_id(&self) -> u16;
    /// Largest size of each queue; each a power of two, at most 32768.
    fn queue_sizes(&self) -> &[u16];
    /// Device feature bits offered. The transport adds VERSION_1, RING_INDIRECT_DESC and RING_EVENT_IDX.
    fn features(&self) -> u64;
    /// Reads device configuration space; what lies past its end reads as zero. `data` comes zeroed.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes device configuration space; most devices have nothing writable and ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The threads its work is done on, in the order of [`Activation::threads`]. They are there from when the
    /// device is made until it goes.
    fn threads(&self) -> Vec<Role> {
        vec![Role::Shared]
    }
    /// The driver is ready: hand the queues to the threads. Called in the guest's register write, on a thread that
    /// may open and start nothing: what the host is to be asked for, the threads ask for. On an error, here or
    /// there, DEVICE_NEEDS_RESET is set; nothing may be left running.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// Stops all work. When it returns no thread and no I/O in flight touches guest memory, and the device can
    /// be activated again; unless a thread hangs, in which case it will be called again. Must not wait for the guest.
    /// Called on an idle device too.
    fn reset(&mut self) -> Result<(), Hung>;
}

/// Everything a device needs while active, moved in at once.
pub struct Activation {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// Feature bits both sides agreed on.
    pub features: u64,
    /// The queues the driver enabled, by index; a disabled one is absent.
    pub queues: Vec<ActiveQueue>,
    /// How to reach the driver.
    pub interrupt: Arc<dyn VirtioInterrupt>,
    /// One for each of [`VirtioDevice::threads`].
    pub threads: Vec<Arc<IoThread>>,
}

impl Activation {
    /// A thread of those the device asked for.
    pub fn thread(&self, index: usize) -> &Arc<IoThread> {
        self.threads.get(index).expect("the transport has one for each that the device asked for")
    }

    /// What breaks the device when its work on a thread cannot go on.
    pub fn breaks(&self) -> impl Fn() + Send + 'static {
        let interrupt = self.interrupt.clone();
        move || interrupt.needs_reset()
    }
}

/// A queue the driver enabled, valid (`Queue::is_valid`) at this moment.
pub struct ActiveQueue {
    /// Queue index.
    pub index: u16,
    /// Rings and positions; its registers cannot change any more.
    pub queue: Queue,
    /// Signalled by the driver's notifications. Non-blocking. May be signalled spuriously.
    pub notification: Arc<EventFd>,
}

/// The device's way to the driver; callable from any thread, never blocks.
pub trait VirtioInterrupt: Send + Sync {
    /// Buffers were used in queue `index` (the caller has asked `needs_notification` first).
    fn used_buffers(&self, index: u16);
    /// Device configuration changed: bumps the generation, then notifies.
    fn config_changed(&self);
    /// The driver broke the rules: sets DEVICE_NEEDS_RESET and notifies. The device then stops the queue.
    fn needs_reset(&self);
}

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver enabled too few queues, or the wrong ones.
    #[error("queue {0} is not enabled")]
    QueueMissing(u16),
    /// The device's thread does not take it.
    #[error(transparent)]
    Thread(#[from] Gone),
    /// The host refused something.
    #[error("{step}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}
