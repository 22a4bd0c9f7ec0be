//! Frames from the tap to the guest (virtio 1.2 §5.1.6.3), across several buffers where the driver agreed to
//! merge them (§5.1.6.4).
//!
//! How long the next frame is cannot be known before it is read. So chains are taken from the ring until the
//! longest frame fits, the frame is read into all of them at once, and those it did not reach are used for the
//! next one, or put back. A frame for which the ring has too little is held until the driver adds buffers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::atomic::fence;

use virtio_queue::QueueT;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;

use super::BUDGET;
use super::BURST;
use super::ETHERNET_HEADER;
use super::HEADER_SIZE;
use super::MOST_FRAME;
use super::feature;
use crate::virtio::buffers;
use crate::virtio::buffers::Buffers;
use crate::virtio::buffers::ChainBuffers;
use crate::virtio::device::ActiveQueue;
use crate::virtio::device::VirtioInterrupt;
use crate::virtio::queue;
use crate::virtio::queue::ChainError;

/// Where `num_buffers` is in the header (§5.1.6).
const NUM_BUFFERS: usize = 10;
/// Pieces of guest memory for one read; the kernel takes 1024, and one is for what does not fit.
const MOST_PIECES: usize = 1023;

pub(super) struct Receive {
    pub(super) queue: ActiveQueue,
    /// The tap has not said that it is empty since it last said it has frames.
    pub(super) readable: bool,
    /// A frame may lie in several chains.
    mergeable: bool,
    /// Bytes of the longest frame to expect, with its header.
    longest: usize,
    /// A frame that was read and found too few buffers.
    held: Option<Vec<u8>>,
    overflow: Vec<u8>,
    /// The used index when the driver's wish to be notified was last looked at.
    looked_at: u16,
}

/// Chains taken from the ring and not used yet.
#[derive(Default)]
struct Taken<'m> {
    chains: VecDeque<ChainBuffers<'m>>,
    room: usize,
    pieces: usize,
}

impl Receive {
    pub(super) fn new(queue: ActiveQueue, features: u64, mtu: u16) -> Self {
        let segments = features & (feature::GUEST_TSO4 | feature::GUEST_TSO6) != 0;
        let longest = if segments { MOST_FRAME } else { HEADER_SIZE + ETHERNET_HEADER + usize::from(mtu) };
        Self {
            readable: true,
            mergeable: features & feature::MRG_RXBUF != 0,
            longest,
            held: None,
            overflow: vec![0; MOST_FRAME],
            looked_at: queue.queue.next_used(),
            queue,
        }
    }

    /// Takes what the tap has; true if the budget ended before.
    pub(super) fn run(
        &mut self,
        memory: &GuestMemoryMmap,
        tap: BorrowedFd<'_>,
        interrupt: &Arc<dyn VirtioInterrupt>,
    ) -> Result<bool, ChainError> {
        let mut taken = Taken::default();
        let mut budget = BUDGET;
        while budget > 0 && (self.readable || self.held.is_some()) {
            self.take(memory, &mut taken)?;
            let enough = match &self.held {
                Some(frame) => frame.len() <= taken.room,
                None => !taken.chains.is_empty(),
            };
            if enough {
                self.receive(memory, tap, &mut taken)?;
            } else if !taken.chains.is_empty() && (!self.mergeable || self.is_whole_ring(&taken)) {
                // Too long for all that this driver gives: lost.
                self.held = None;
            } else if !self.queue.queue.enable_notification(memory)? {
                break;
            }
            budget -= 1;
            if budget.is_multiple_of(BURST) {
                self.notify(memory, interrupt)?;
            }
        }
        let left = u16::try_from(taken.chains.len()).expect("no more than the queue has");
        self.queue.queue.set_next_avail(self.queue.queue.next_avail().wrapping_sub(left));
        self.notify(memory, interrupt)?;
        Ok(budget == 0)
    }

    /// Takes chains until the longest frame fits or there are none.
    fn take<'m>(&mut self, memory: &'m GuestMemoryMmap, taken: &mut Taken<'m>) -> Result<(), ChainError> {
        while taken.room < self.longest && (self.mergeable || taken.chains.is_empty()) {
            let Some(chain) = queue::next(&mut self.queue, memory)? else { break };
            let chain = ChainBuffers::new(memory, chain, self.queue.queue.size())?;
            if chain.writable.is_empty() {
                return Err(ChainError::Layout("a receive buffer that cannot be written"));
            }
            if taken.pieces + chain.writable.pieces() > MOST_PIECES {
                return Err(ChainError::Layout("receive buffers in too many pieces"));
            }
            taken.room += chain.writable.len();
            taken.pieces += chain.writable.pieces();
            taken.chains.push_back(chain);
        }
        Ok(())
    }

    fn is_whole_ring(&self, taken: &Taken<'_>) -> bool {
        taken.chains.len() >= usize::from(self.queue.queue.size())
    }

    /// Moves one frame: the held one, or the next of the tap.
    fn receive(
        &mut self,
        memory: &GuestMemoryMmap,
        tap: BorrowedFd<'_>,
        taken: &mut Taken<'_>,
    ) -> Result<(), ChainError> {
        if let Some(frame) = self.held.take() {
            let mut at = 0;
            taken.chains.iter().for_each(|c| at += c.writable.copy_from(0, &frame[at..]));
            return self.give(memory, taken, frame.len());
        }
        let buffers = taken.chains.iter().map(|c| &c.writable);
        match buffers::read_from(tap, buffers, &mut self.overflow) {
            Ok(length) if length > taken.room => self.hold(taken, length),
            // Shorter than a header cannot be from a tap.
            Ok(length) if length < HEADER_SIZE => {}
            Ok(length) => self.give(memory, taken, length)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Empty; or detached, and attaching it will be said.
            Err(_) => self.readable = false,
        }
        Ok(())
    }

    /// Keeps a frame that did not fit.
    fn hold(&mut self, taken: &Taken<'_>, length: usize) {
        let mut frame = vec![0; taken.room];
        let mut at = 0;
        taken.chains.iter().for_each(|c| at += c.writable.copy_to(&mut frame[at..]));
        frame.extend_from_slice(&self.overflow[..length - taken.room]);
        self.held = Some(frame);
    }

    /// Gives the driver the chains a frame of `length` bytes lies in, all at once: a driver that saw the first
    /// alone would take the others for lost.
    fn give(
        &mut self,
        memory: &GuestMemoryMmap,
        taken: &mut Taken<'_>,
        length: usize,
    ) -> Result<(), ChainError> {
        let mut left = length;
        let ends = |chain: &ChainBuffers<'_>| {
            left = left.saturating_sub(chain.writable.len());
            left == 0
        };
        let count = taken.chains.iter().position(ends).expect("the frame fits") + 1;
        let number = u16::try_from(count).expect("no more than the queue has");
        let header = taken.chains.iter().map(|c| &c.writable);
        put(header, NUM_BUFFERS, &number.to_le_bytes());

        let ring = &mut self.queue.queue;
        let mut left = length;
        for (offset, chain) in (0..number).zip(taken.chains.drain(..count)) {
            let written = left.min(chain.writable.len());
            taken.room -= chain.writable.len();
            taken.pieces -= chain.writable.pieces();
            left -= written;
            let written = u32::try_from(written).expect("at most MOST_FRAME");
            if offset + 1 < number {
                // struct virtq_used_elem: id, len (§2.7.8).
                let element = (u64::from(written) << 32 | u64::from(chain.head)).to_le();
                let slot = ring.next_used().wrapping_add(offset) % ring.size();
                // `Queue::is_valid` has found the ring in RAM.
                let address = ring.used_ring() + 4 + 8 * u64::from(slot);
                memory.write_obj(element, GuestAddress(address)).map_err(virtio_queue::Error::GuestMemory)?;
            } else {
                ring.set_next_used(ring.next_used().wrapping_add(offset));
                ring.add_used(memory, chain.head, written)?;
            }
        }
        Ok(())
    }

    /// Notifies the driver if it wants to know of what was used since the last time (§2.7.7.2). Not
    /// `Queue::needs_notification`, which knows only of what was used one at a time.
    fn notify(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Arc<dyn VirtioInterrupt>,
    ) -> Result<(), ChainError> {
        let ring = &self.queue.queue;
        let used = ring.next_used();
        let added = used.wrapping_sub(self.looked_at);
        if added == 0 {
            return Ok(());
        }
        // The used index must be seen before the driver's wish is read.
        fence(Ordering::SeqCst);
        let load = |address| memory.load::<u16>(GuestAddress(address), Ordering::Relaxed).map(u16::from_le);
        let wanted = if ring.event_idx_enabled() {
            let used_event = load(ring.avail_ring() + 4 + 2 * u64::from(ring.size()));
            used_event.map(|event| used.wrapping_sub(event).wrapping_sub(1) < added)
        } else {
            // VIRTQ_AVAIL_F_NO_INTERRUPT.
            load(ring.avail_ring()).map(|flags| flags & 1 == 0)
        };
        self.looked_at = used;
        if wanted.map_err(virtio_queue::Error::GuestMemory)? {
            interrupt.used_buffers(self.queue.index);
        }
        Ok(())
    }
}

/// Copies `bytes` to `offset` of a run of buffers.
fn put<'b, 'm: 'b>(buffers: impl Iterator<Item = &'b Buffers<'m>>, mut offset: usize, mut bytes: &[u8]) {
    for buffers in buffers {
        if offset >= buffers.len() {
            offset -= buffers.len();
            continue;
        }
        bytes = &bytes[buffers.copy_from(offset, bytes)..];
        offset = 0;
        if bytes.is_empty() {
            return;
        }
    }
}
