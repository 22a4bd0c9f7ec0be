//! The event queue (virtio 1.2 §5.10.6.7): what the driver is told of the transport as a whole.

use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use crate::virtio::buffers::ChainBuffers;
use crate::virtio::device::ActiveQueue;
use crate::virtio::device::VirtioInterrupt;
use crate::virtio::queue;
use crate::virtio::queue::ChainError;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: streams are gone, listeners stay.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

pub(super) struct Events {
    /// Absent if the driver did not enable it.
    queue: Option<ActiveQueue>,
    /// An event that waits for a buffer.
    reset: bool,
}

impl Events {
    /// `reset` if the driver has streams of a machine that was saved.
    pub(super) fn new(queue: Option<ActiveQueue>, reset: bool) -> Self {
        Self { queue, reset }
    }

    pub(super) fn queue(&self) -> Option<&ActiveQueue> {
        self.queue.as_ref()
    }

    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.queue.as_ref().map(|queue| queue.notification.as_raw_fd())
    }

    /// The driver has notified.
    pub(super) fn clear(&self) {
        self.queue.iter().for_each(queue::clear);
    }

    /// Sends what is to be said, if the driver has a buffer for it; otherwise when it notifies.
    pub(super) fn send(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Arc<dyn VirtioInterrupt>,
    ) -> Result<(), ChainError> {
        let Some(queue) = self.queue.as_mut().filter(|_| self.reset) else { return Ok(()) };
        while self.reset {
            let Some(chain) = queue::next(queue, memory)? else {
                if queue.queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(());
            };
            let chain = ChainBuffers::new(memory, chain, queue.queue.size())?;
            if chain.writable.len() < TRANSPORT_RESET.len() {
                return Err(ChainError::Layout("an event buffer without room for an event"));
            }
            chain.writable.copy_from(0, &TRANSPORT_RESET);
            queue.queue.add_used(memory, chain.head, 4)?;
            queue::notify(queue, memory, interrupt)?;
            self.reset = false;
        }
        Ok(())
    }
}
