//! What a virtio device is to its transport, and what it gets when the driver is ready.
//!
//! ```text
//!   new ──────────► idle ──activate (DRIVER_OK)──► active
//!                    ▲                                │
//!                    └──────── reset (status = 0) ────┘
//! ```
//! A device is its configuration (what it was made with), its state (what the driver and the host have set, a plain
//! value) and its running half (a handler on a thread). An active device is paused by taking its running half off
//! its thread, and goes on with it; what is saved meanwhile, another device with the same configuration restores.
//!
//! The transport owns status, features, queue registers and their freezing (virtio 1.2 §2.1, §4.1); a device
//! sees only the outcome.

use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;
use virtio_queue::Queue;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use crate::io_thread::Gone;
use crate::io_thread::Hung;
use crate::io_thread::IoThread;
use crate::io_thread::Pausable;
use crate::platform::GuestMemory;
use crate::platform::Role;

/// Where a queue is that the device has stopped to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Queue index.
    pub index: u16,
    /// The next entry of the available ring.
    pub next_avail: u16,
    /// The next entry of the used ring.
    pub next_used: u16,
}

/// What a paused device knows besides its registers, which are its transport's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceState {
    /// Of the queues that it serves.
    pub positions: Vec<Position>,
    /// What else there is.
    pub own: OwnState,
}

/// State that one kind of device has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OwnState {
    /// Nothing.
    #[default]
    None,
    /// virtio-balloon (§5.5.4), in pages.
    Balloon {
        /// What the host asks for.
        target: u32,
        /// What the driver says.
        actual: u32,
    },
    /// virtio-mem (§5.15.4).
    Mem {
        /// Bytes the host asks for.
        requested: u64,
        /// Bytes from the region's start that can be plugged.
        usable: u64,
        /// One bit a block.
        plugged: Vec<u64>,
    },
    /// virtio-net: queue pairs the driver uses (§5.1.6.5.5).
    Net {
        /// How many.
        pairs: u16,
    },
}

impl DeviceState {
    /// Of a device that knows nothing but where its queues are.
    pub fn of<'a>(queues: impl IntoIterator<Item = &'a ActiveQueue>) -> Self {
        let positions = queues.into_iter().map(ActiveQueue::position).collect();
        Self { positions, own: OwnState::None }
    }
}

/// Why a device cannot take over a state: it is of another kind or size of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the state is not of such a device")]
pub struct WrongState;

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
    /// What it has on threads, so that it can be paused: all of it, before guest memory is looked at by anybody else.
    fn work(&mut self) -> Vec<&mut dyn Pausable>;
    /// Why it cannot be saved as it is, for whoever asks before anything is paused.
    fn unsaved(&self) -> Option<&'static str> {
        None
    }
    /// The state of a paused device.
    fn save(&self) -> DeviceState;
    /// Takes over what [`VirtioDevice::save`] gave, of an idle device that was made in the same way. The transport
    /// activates it next, with the queues where they were, if the driver had been ready.
    fn restore(&mut self, state: &OwnState) -> Result<(), WrongState> {
        if *state == OwnState::None { Ok(()) } else { Err(WrongState) }
    }
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

impl ActiveQueue {
    /// Where it is.
    pub fn position(&self) -> Position {
        let (next_avail, next_used) = (self.queue.next_avail(), self.queue.next_used());
        Position { index: self.index, next_avail, next_used }
    }
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
