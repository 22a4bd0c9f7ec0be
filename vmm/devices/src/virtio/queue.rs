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
use crate::log_limit::LogLimit;

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

/// Descriptors an indirect chain may have in a shorter queue. A driver must not (§2.7.5.3.1), but Linux does;
/// this is what it could hand to one readv of its own.
pub const INDIRECT: u16 = 1024;

/// A chain over a borrowed snapshot of guest memory.
pub type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// Serves available chains with `request`, which returns the bytes it wrote. A chain that `request` refuses
/// ends the loop with the error and is not given back.
///
/// A driver that adds chains as fast as they are served must not keep the thread from being told to stop:
/// after a whole queue of them this notifies itself and returns.
pub fn serve(
    queue: &mut ActiveQueue,
    memory: &GuestMemoryMmap,
    interrupt: &Arc<dyn VirtioInterrupt>,
    mut request: impl FnMut(&GuestMemoryMmap, Chain<'_>) -> Result<u32, ChainError>,
) -> Result<(), ChainError> {
    let mut budget = queue.queue.size();
    loop {
        queue.queue.disable_notification(memory)?;
        while let Some(chain) = next(queue, memory)? {
            let head = chain.head_index();
            let written = request(memory, chain)?;
            queue.queue.add_used(memory, head, written)?;
            notify(queue, memory, interrupt)?;
            budget -= 1;
            if budget == 0 {
                again(queue);
                return Ok(());
            }
        }
        if !queue.queue.enable_notification(memory)? {
            return Ok(());
        }
    }
}

/// Tells the driver of what was used since the last time, if it wants to know (§2.7.7).
pub fn notify(
    queue: &mut ActiveQueue,
    memory: &GuestMemoryMmap,
    interrupt: &Arc<dyn VirtioInterrupt>,
) -> Result<(), ChainError> {
    if queue.queue.needs_notification(memory)? {
        interrupt.used_buffers(queue.index);
    }
    Ok(())
}

/// Notifies the queue as the driver would: its thread comes back to it once it has looked at everything else.
pub fn again(queue: &ActiveQueue) {
    // A full counter means that a notification is pending already.
    let _ = queue.notification.write(1);
}

/// Takes the next chain, if there is one. It is whole: it ends with a descriptor that says so, has no more
/// bytes than 4 GiB (§2.7.5.2) and no more descriptors than the queue, or [`INDIRECT`] where that is more.
pub fn next<'a>(
    queue: &mut ActiveQueue,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<Chain<'a>>, ChainError> {
    let most = usize::from(queue.queue.size().max(INDIRECT));
    // `iter` and not `pop_descriptor_chain`: the latter hides a ring index that jumped.
    let Some(chain) = queue.queue.iter(memory)?.next() else { return Ok(None) };
    // A chain's iterator ends at whatever it cannot follow, as if the chain ended there.
    let last = chain.clone().take(most + 1).enumerate().last();
    match last {
        None => Err(ChainError::Layout("its first descriptor cannot be read")),
        Some((before, _)) if before >= most => Err(ChainError::Layout("too many descriptors")),
        Some((_, descriptor)) if descriptor.has_next() => {
            Err(ChainError::Layout("it loops, is over 4 GiB or leads where nothing is"))
        }
        Some(_) => Ok(Some(chain)),
    }
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
            // A driver can reset the device and break the rules again, for ever.
            static REPORTS: LogLimit = LogLimit::new();
            if REPORTS.allows() {
                tracing::warn!("{device}: the driver broke the rules: {e}");
            }
            interrupt.needs_reset();
            ControlFlow::Break(())
        }
    }
}
