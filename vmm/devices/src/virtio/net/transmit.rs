//! Frames from the guest to the tap (virtio 1.2 §5.1.6.2).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_queue::QueueOwnedT;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::BUDGET;
use super::BURST;
use super::HEADER_SIZE;
use super::MOST_FRAME;
use crate::virtio::buffers::ChainBuffers;
use crate::virtio::device::ActiveQueue;
use crate::virtio::device::VirtioInterrupt;
use crate::virtio::queue;
use crate::virtio::queue::ChainError;

pub(super) struct Transmit {
    pub(super) queue: ActiveQueue,
    /// The tap has not refused since it last said it takes frames.
    pub(super) writable: bool,
}

impl Transmit {
    pub(super) fn new(queue: ActiveQueue) -> Self {
        Self { queue, writable: true }
    }

    /// Sends what the ring has; true if the budget ended before the ring.
    pub(super) fn run(
        &mut self,
        memory: &GuestMemoryMmap,
        tap: BorrowedFd<'_>,
        interrupt: &Arc<dyn VirtioInterrupt>,
    ) -> Result<bool, ChainError> {
        let mut budget = BUDGET;
        while self.writable {
            self.queue.queue.disable_notification(memory)?;
            while self.writable && budget > 0 {
                let Some(chain) = queue::next(&mut self.queue, memory)? else { break };
                self.send(memory, ChainBuffers::new(memory, chain, self.queue.queue.size())?, tap)?;
                budget -= 1;
                if budget.is_multiple_of(BURST) {
                    queue::notify(&mut self.queue, memory, interrupt)?;
                }
            }
            if budget == 0 {
                queue::notify(&mut self.queue, memory, interrupt)?;
                return Ok(true);
            }
            if !self.writable || !self.queue.queue.enable_notification(memory)? {
                break;
            }
        }
        if budget < BUDGET {
            queue::notify(&mut self.queue, memory, interrupt)?;
        }
        Ok(false)
    }

    fn send(
        &mut self,
        memory: &GuestMemoryMmap,
        chain: ChainBuffers<'_>,
        tap: BorrowedFd<'_>,
    ) -> Result<(), ChainError> {
        let frame = &chain.readable;
        if frame.len() < HEADER_SIZE {
            return Err(ChainError::Layout("a frame shorter than its header"));
        }
        // Longer than any frame can be: dropped, as a switch would.
        if frame.len() <= MOST_FRAME {
            match frame.write_to(tap) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    self.queue.queue.go_to_previous_position();
                    return Ok(());
                }
                // Written, or refused for good: a header that makes no sense, an interface that is down, a
                // queue that is not attached. The network loses frames; the ring must not.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(self.queue.queue.add_used(memory, chain.head, 0)?)
    }
}
