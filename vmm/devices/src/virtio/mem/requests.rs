//! Answers the driver's requests (§5.15.6): each is checked whole before anything moves.

use std::io::Read;
use std::io::Write;
use std::ops::ControlFlow;
use std::ops::Range;
use std::sync::Arc;

use event_manager::EventSet;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryMmap;

use super::MemControl;
use super::blocks::Blocks;
use super::blocks::RangeState;
use crate::io_thread::Handler;
use crate::io_thread::Interest;
use crate::log_limit::LogLimit;
use crate::platform::PluggableRam;
use crate::virtio::device::Activation;
use crate::virtio::device::ActiveQueue;
use crate::virtio::queue;
use crate::virtio::queue::Chain;
use crate::virtio::queue::ChainError;

/// Request types: `VIRTIO_MEM_REQ_*`.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
/// Bytes of a request, and of the response to one.
const REQUEST_LENGTH: usize = 24;
const RESPONSE_LENGTH: usize = 10;

/// `VIRTIO_MEM_RESP_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Response {
    Ack = 0,
    /// More than is asked for.
    Nack = 1,
    /// Not now: the host could not.
    Busy = 2,
    /// The request makes no sense.
    Error = 3,
}

/// What is on the device's thread.
pub(super) struct Requests {
    queue: ActiveQueue,
    activation: Activation,
    memory: Plugging,
}

/// The region as requests see it.
struct Plugging {
    control: MemControl,
    memory: Arc<dyn PluggableRam>,
}

impl Requests {
    pub(super) fn new(
        queue: ActiveQueue,
        activation: Activation,
        control: MemControl,
        memory: Arc<dyn PluggableRam>,
    ) -> Self {
        Self { queue, activation, memory: Plugging { control, memory } }
    }

    pub(super) fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    fn serve(&mut self) -> ControlFlow<()> {
        queue::clear(&self.queue);
        // The address space changes under a request that plugs, but not under the request's own buffers: a
        // driver that unplugs those gets its answer into memory nobody holds.
        let memory = self.activation.memory.memory();
        let plugging = &self.memory;
        let served = queue::serve(&mut self.queue, &memory, &self.activation.interrupt, |memory, chain| {
            plugging.answer(memory, chain)
        });
        queue::stop_if_malformed("virtio-mem", served, &self.activation.interrupt)
    }
}

impl Handler for Requests {
    fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
        self.serve()
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        self.serve()
    }
}

impl Plugging {
    fn answer(&self, memory: &GuestMemoryMmap, chain: Chain<'_>) -> Result<u32, ChainError> {
        let mut writer = chain.clone().writer(memory)?;
        let mut reader = chain.reader(memory)?;
        if reader.available_bytes() < REQUEST_LENGTH || writer.available_bytes() < RESPONSE_LENGTH {
            return Err(ChainError::Layout("too short for a request and its response"));
        }
        let mut request = [0; REQUEST_LENGTH];
        reader.read_exact(&mut request).map_err(ChainError::Memory)?;
        let word = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        let address = u64::from_le_bytes(request[8..16].try_into().expect("eight bytes"));
        let (kind, count) = (word(0), word(16));

        let (response, state) = match kind {
            PLUG => (self.plug(address, count), None),
            UNPLUG => (self.unplug(address, count), None),
            UNPLUG_ALL => (self.unplug_all(), None),
            STATE => match self.state(address, count) {
                Some(state) => (Response::Ack, Some(state)),
                None => (Response::Error, None),
            },
            _ => (Response::Error, None),
        };
        let mut bytes = [0; RESPONSE_LENGTH];
        bytes[..2].copy_from_slice(&(response as u16).to_le_bytes());
        // `VIRTIO_MEM_STATE_*`
        let state: u16 = match state {
            None | Some(RangeState::Plugged) => 0,
            Some(RangeState::Unplugged) => 1,
            Some(RangeState::Mixed) => 2,
        };
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        writer.write_all(&bytes).map_err(ChainError::Memory)?;
        Ok(u32::try_from(RESPONSE_LENGTH).expect("ten bytes"))
    }

    /// The blocks of a request, if they are whole blocks of the usable region.
    fn range(&self, address: u64, count: u16) -> Option<Range<usize>> {
        let region = self.control.region();
        let offset = address.checked_sub(region.address)?;
        let end = offset.checked_add(u64::from(count) * region.block)?;
        if count == 0 || !offset.is_multiple_of(region.block) || end > self.control.usable() {
            return None;
        }
        let start = usize::try_from(offset / region.block).ok()?;
        Some(start..start + usize::from(count))
    }

    /// (offset in the region, bytes) of a range of blocks.
    fn bytes(&self, range: &Range<usize>) -> (u64, u64) {
        let block = self.control.region().block;
        (range.start as u64 * block, range.len() as u64 * block)
    }

    /// §5.15.6.2
    fn plug(&self, address: u64, count: u16) -> Response {
        let mut blocks = self.control.blocks().lock();
        let Some(range) = self.range(address, count) else { return Response::Error };
        if blocks.state(range.clone()) != RangeState::Unplugged {
            return Response::Error;
        }
        let (offset, length) = self.bytes(&range);
        if length > self.control.room() {
            return Response::Nack;
        }
        if let Err(error) = self.memory.plug(offset, length) {
            report("plug", offset, length, &error);
            return Response::Busy;
        }
        blocks.set(range, true);
        self.control.count_plugged(length);
        Response::Ack
    }

    /// §5.15.6.3
    fn unplug(&self, address: u64, count: u16) -> Response {
        let mut blocks = self.control.blocks().lock();
        match self.range(address, count) {
            Some(range) if blocks.state(range.clone()) == RangeState::Plugged => {
                self.take(&mut blocks, range)
            }
            _ => Response::Error,
        }
    }

    /// §5.15.6.4
    fn unplug_all(&self) -> Response {
        let mut blocks = self.control.blocks().lock();
        let mut from = 0;
        while let Some(range) = blocks.next_run(from) {
            from = range.end;
            let response = self.take(&mut blocks, range);
            if response != Response::Ack {
                return response;
            }
        }
        self.control.shrink_usable();
        Response::Ack
    }

    /// Unplugs a range that is plugged.
    fn take(&self, blocks: &mut Blocks, range: Range<usize>) -> Response {
        let (offset, length) = self.bytes(&range);
        if let Err(error) = self.memory.unplug(offset, length) {
            report("unplug", offset, length, &error);
            return Response::Busy;
        }
        blocks.set(range, false);
        self.control.count_unplugged(length);
        Response::Ack
    }

    /// §5.15.6.5
    fn state(&self, address: u64, count: u16) -> Option<RangeState> {
        let blocks = self.control.blocks().lock();
        self.range(address, count).map(|range| blocks.state(range))
    }
}

/// The driver tries again, for ever if it likes.
fn report(what: &str, offset: u64, length: u64, error: &std::io::Error) {
    static REPORTS: LogLimit = LogLimit::new();
    if REPORTS.allows() {
        tracing::warn!("virtio-mem: {what} {offset:#x}+{length:#x} of the region: {error}");
    }
}
