//! virtio-mem (virtio 1.2 §5.15): a region of guest-physical addresses in which RAM comes and goes in blocks.
//!
//! The host says how much it wants to be plugged; the driver plugs and unplugs blocks, one request each, until
//! that is so. What a driver may get is bounded by what the host asked for at that moment: a request beyond it
//! is refused, and an unplugged block is memory nobody holds. Shrinking is up to the guest, which may keep
//! what it was once given.
//!
//! Which blocks are plugged survives a reset of the device (§5.15.5): only the driver unplugs.
//!
//! `blocks` knows what is plugged, `requests` answers the driver, `control` is what the host holds. Memory itself
//! is behind [`PluggableRam`].

mod blocks;
mod control;
mod requests;
#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::device::ActivateError;
use super::device::Activation;
use super::device::DeviceState;
use super::device::OwnState;
use super::device::VirtioDevice;
use super::device::WrongState;
use crate::io_thread::Hung;
use crate::io_thread::Pausable;
use crate::io_thread::Work;
use crate::platform::PluggableRam;
use requests::Requests;

pub use control::MemControl;
pub use control::MemSizes;
pub use control::RequestSizeError;

/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE` (§5.15.3): the driver keeps its hands off unplugged blocks. One that
/// does not agree finds nothing of value there either.
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// The one queue, for requests of the driver.
const QUEUE_SIZES: &[u16] = &[128];

/// Linux adds memory in blocks of this size (x86-64, below 64 GiB at boot), and only if all of it is usable.
const USABLE_STEP: u64 = 128 << 20;

/// Where the region lies. Address and length are multiples of the block, which is a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemRegion {
    /// First guest-physical address.
    pub address: u64,
    /// Bytes: the most that can be plugged.
    pub length: u64,
    /// Bytes of a block.
    pub block: u64,
}

/// The device.
pub struct Mem {
    control: MemControl,
    memory: Arc<dyn PluggableRam>,
    work: Work<Requests>,
}

impl Mem {
    /// A device with nothing plugged, over `memory`, which offers the whole region.
    pub fn new(region: MemRegion, memory: Arc<dyn PluggableRam>) -> Self {
        Self { control: MemControl::new(region), memory, work: Work::default() }
    }

    /// The host's end. It outlives the device.
    pub fn control(&self) -> MemControl {
        self.control.clone()
    }
}

impl VirtioDevice for Mem {
    fn device_id(&self) -> u16 {
        24
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.control.config();
        let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..));
        for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *byte = *value;
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = activation.queues.pop().ok_or(ActivateError::QueueMissing(0))?;
        let interrupt = activation.interrupt.clone();
        let descriptors = [(queue.notification.as_raw_fd(), 0)];
        let (thread, breaks) = (activation.thread(0).clone(), activation.breaks());
        let requests = Requests::new(queue, activation, self.control.clone(), self.memory.clone());
        self.work.begin((&thread, "virtio-mem"), requests, &descriptors, breaks)?;
        self.control.connect(Some(interrupt));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Hung> {
        self.control.connect(None);
        self.work.end().map(drop)
    }

    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        vec![&mut self.work]
    }

    fn save(&self) -> DeviceState {
        let queues = self.work.paused().map(Requests::queue);
        DeviceState { own: self.control.save(), ..DeviceState::of(queues) }
    }

    /// Plugs the memory, which is zeroes then.
    fn restore(&mut self, state: &OwnState) -> Result<(), WrongState> {
        self.control.restore(state, self.memory.as_ref())
    }
}

impl Drop for Mem {
    fn drop(&mut self) {
        // That its thread hangs has been said.
        let _ = self.reset();
        self.control.close();
    }
}
