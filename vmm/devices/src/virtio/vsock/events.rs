//! The event queue (virtio 1.2 §5.10.6.7): what the driver is told of the transport as a whole.

use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use crate::virtio::buffers::ChainBuffers;
use crate::virtio::device::ActiveQueue;
use crate::virtio::device::VirtioInterrupt;
use crate::virtio::queue;
use crate::virtio::queue::Chain;
use crate::virtio::queue::ChainError;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: streams are gone, listeners stay.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

pub(super) struct Events {
    /// Absent if the driver did not enable it.
    queue: Option<ActiveQueue>,
    reset: Reset,
}

/// How far the driver's word that its streams are gone has come.
enum Reset {
    /// It has none that it does not know of.
    None,
    /// It is to be told as soon as it has a buffer for it.
    Due,
    /// It has been told, and had offered buffers up to this index of the available ring. It resets its streams before it
    /// offers one more; a stream that is opened before that may be taken for one of those.
    Told(u16),
}

impl Events {
    /// `reset` if the driver has streams of a machine that was saved.
    pub(super) fn new(queue: Option<ActiveQueue>, reset: bool) -> Self {
        let reset = if reset && queue.is_some() { Reset::Due } else { Reset::None };
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

    /// Sends what is to be said, if the driver has a buffer for it. False while it has not acted on it: nothing new is
    /// to be said to it then. It notifies when that changes.
    pub(super) fn settle(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Arc<dyn VirtioInterrupt>,
    ) -> Result<bool, ChainError> {
        let Some(queue) = self.queue.as_mut() else { return Ok(true) };
        loop {
            match self.reset {
                Reset::None => return Ok(true),
                Reset::Due => {
                    if let Some(chain) = queue::next(queue, memory)? {
                        send(queue, memory, chain)?;
                        self.reset = Reset::Told(offered(queue, memory)?);
                        queue::notify(queue, memory, interrupt)?;
                    } else if !queue.queue.enable_notification(memory)? {
                        return Ok(false);
                    }
                }
                Reset::Told(before) => {
                    // Notifications are asked for from a buffer on, which is the next one here and not the next that
                    // is to be used.
                    let next = queue.queue.next_avail();
                    queue.queue.set_next_avail(before);
                    let more = queue.queue.enable_notification(memory);
                    queue.queue.set_next_avail(next);
                    if !more? {
                        return Ok(false);
                    }
                    self.reset = Reset::None;
                }
            }
        }
    }
}

fn send(queue: &mut ActiveQueue, memory: &GuestMemoryMmap, chain: Chain<'_>) -> Result<(), ChainError> {
    let chain = ChainBuffers::new(memory, chain, queue.queue.size())?;
    if chain.writable.len() < TRANSPORT_RESET.len() {
        return Err(ChainError::Layout("an event buffer without room for an event"));
    }
    chain.writable.copy_from(0, &TRANSPORT_RESET);
    queue.queue.add_used(memory, chain.head, 4)?;
    Ok(())
}

/// How many buffers the driver has offered so far.
fn offered(queue: &ActiveQueue, memory: &GuestMemoryMmap) -> Result<u16, ChainError> {
    Ok(queue.queue.avail_idx(memory, Ordering::Acquire)?.0)
}
