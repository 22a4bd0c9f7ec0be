//! What every device does with a virtqueue: take chains until there are none, give each back, notify when
//! asked to (virtio 1.2 §2.7). The rules of the ring itself are `virtio_queue`'s.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use virtio_queue::DescriptorChain;
use virtio_queue::QueueOwnedT;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::device::ActiveQueue;
use super::device::VirtioInterrupt;

/// What the driver put into the ring that breaks the rules. The device stops and asks to be reset.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The ring or a chain is malformed: an address outside RAM, an index past the end, a length that
    /// overflows.
    #[error("virtqueue: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A chain lies outside guest RAM.
    #[error("descriptor chain: {0}")]
    Memory(io::Error),
    /// The chain does not have the layout this device asks for.
    #[error("descriptor chain: {0}")]
    Layout(&'static str),
}

/// A chain over a borrowed snapshot of guest memory.
pub type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// Serves every available chain with `request`, which returns the bytes it wrote. A chain that `request`
/// refuses ends the loop with the error and is not given back.
pub fn serve(
    queue: &mut ActiveQueue,
    memory: &GuestMemoryMmap,
    interrupt: &Arc<dyn VirtioInterrupt>,
    mut request: impl FnMut(&GuestMemoryMmap, Chain<'_>) -> Result<u32, ChainError>,
) -> Result<(), ChainError> {
    loop {
        queue.queue.disable_notification(memory)?;
        // `iter` and not `pop_descriptor_chain`: the latter hides a ring index that jumped.
        while let Some(chain) = next(queue, memory)? {
            let head = chain.head_index();
            let written = request(memory, chain)?;
            queue.queue.add_used(memory, head, written)?;
            if queue.queue.needs_notification(memory)? {
                interrupt.used_buffers(queue.index);
            }
        }
        if !queue.queue.enable_notification(memory)? {
            return Ok(());
        }
    }
}

/// Takes the next chain, if there is one.
pub fn next<'a>(
    queue: &mut ActiveQueue,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<Chain<'a>>, ChainError> {
    Ok(queue.queue.iter(memory)?.next())
}

/// Empties the notification's counter, so that the next wait is for the next notification.
pub fn clear(queue: &ActiveQueue) {
    // Spurious wake-ups leave nothing to read.
    let _ = queue.notification.read();
}

/// Turns a malformed chain into a device that needs a reset and a thread that ends.
pub fn stop_if_malformed(
    device: &str,
    result: Result<(), ChainError>,
    interrupt: &Arc<dyn VirtioInterrupt>,
) -> ControlFlow<()> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            // Once an activation: the thread ends here, so the guest cannot flood the log.
            tracing::warn!("{device}: the driver broke the rules: {e}");
            interrupt.needs_reset();
            ControlFlow::Break(())
        }
    }
}
