//! Carries requests from the ring to the backend and their ends back.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::RawFd;
use std::sync::Arc;

use event_manager::EventSet;
use virtio_queue::QueueT;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryMmap;

use super::Disk;
use super::F_FLUSH;
use super::ID_LENGTH;
use super::MOST_UNDER_WAY;
use super::backend::Backend;
use super::backend::Completion;
use super::backend::Work;
use super::request::Operation;
use super::request::Request;
use super::request::Status;
use super::transfer::Direction;
use super::transfer::Transfer;
use crate::io_thread::Handler;
use crate::io_thread::Interest;
use crate::virtio::device::Activation;
use crate::virtio::device::ActiveQueue;
use crate::virtio::queue;
use crate::virtio::queue::ChainError;

pub(super) const NOTIFICATION: u32 = 0;
pub(super) const COMPLETION: u32 = 1;

/// What is on the device's thread. Field order: the backend drains before the rest goes.
pub(super) struct Requests {
    backend: Backend,
    /// By head index.
    pending: HashMap<u16, Pending>,
    /// Bytes of all that is pending.
    under_way: u64,
    disk: Arc<Disk>,
    queue: ActiveQueue,
    activation: Activation,
}

/// A request the backend works on.
struct Pending {
    status: GuestAddress,
    /// Bytes the device writes on success.
    written: u32,
    /// Bytes it moves or clears.
    size: u64,
}

impl Requests {
    pub(super) fn new(disk: Arc<Disk>, backend: Backend, queue: ActiveQueue, activation: Activation) -> Self {
        Self { backend, pending: HashMap::new(), under_way: 0, disk, queue, activation }
    }

    pub(super) fn completions(&self) -> Option<RawFd> {
        self.backend.completions()
    }

    /// To be called when the work has ended.
    pub(super) fn into_backend(self) -> Backend {
        self.backend
    }

    pub(super) fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    /// Bytes of all that was started and has not ended.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> u64 {
        self.under_way
    }

    /// Whether one more request can be started.
    fn has_room(&self) -> bool {
        self.backend.has_room() && self.under_way < MOST_UNDER_WAY
    }

    /// Takes requests while there are any and there is room.
    fn take(&mut self, memory: &Arc<GuestMemoryMmap>) -> Result<(), ChainError> {
        let mut budget = self.queue.queue.size();
        let mut bytes = 0;
        loop {
            self.queue.queue.disable_notification(&**memory)?;
            while self.has_room() {
                // The thread must hear of a reset however fast the driver is, and however slow the disk.
                if budget == 0 || bytes >= MOST_UNDER_WAY {
                    queue::again(&self.queue);
                    return self.backend.kick().map_err(ChainError::Memory);
                }
                budget -= 1;
                let Some(chain) = queue::next(&mut self.queue, memory)? else { break };
                let request = Request::parse(&self.disk, memory, chain)?;
                bytes += self.start(memory, request)?;
            }
            self.backend.kick().map_err(ChainError::Memory)?;
            // Without room the next completion comes back here.
            if !self.has_room() || !self.queue.queue.enable_notification(&**memory)? {
                return Ok(());
            }
        }
    }

    /// Starts a request, or answers it at once; the bytes it is about.
    fn start(&mut self, memory: &Arc<GuestMemoryMmap>, request: Request) -> Result<u64, ChainError> {
        let Request { head, operation, data, status, length } = request;
        if self.pending.contains_key(&head) {
            return Err(ChainError::Layout("a chain that is in flight was made available again"));
        }
        let size = match operation {
            Operation::Discard { length, .. } | Operation::WriteZeroes { length, .. } => length,
            _ => length.into(),
        };
        let (work, written) = match operation {
            Operation::Refused(refusal) => {
                self.finish(memory, head, status, refusal, 0)?;
                return Ok(0);
            }
            Operation::GetId => {
                let written = write_id(&self.disk.id, memory, &data)?;
                self.finish(memory, head, status, Status::Ok, written)?;
                return Ok(0);
            }
            Operation::Read { offset } => (transfer(memory, Direction::Read, offset, length, &data)?, length),
            Operation::Write { offset } => {
                // A driver that cannot flush must find every write on the disk (§5.2.6.2).
                let cached = self.activation.features & F_FLUSH != 0;
                let direction = if cached { Direction::Write } else { Direction::WriteThrough };
                (transfer(memory, direction, offset, length, &data)?, 0)
            }
            Operation::Flush => (Work::Flush, 0),
            Operation::Discard { offset, length } => (Work::discard(offset, length), 0),
            Operation::WriteZeroes { offset, length, unmap } => {
                (Work::write_zeroes(offset, length, unmap), 0)
            }
        };
        self.pending.insert(head, Pending { status, written, size });
        self.under_way += size;
        if let Some(completion) = self.backend.submit(&self.disk, head, work) {
            self.complete(memory, completion)?;
        }
        Ok(size)
    }

    fn complete(&mut self, memory: &GuestMemoryMmap, completion: Completion) -> Result<(), ChainError> {
        let (head, result) = completion;
        let Some(Pending { status, written, size }) = self.pending.remove(&head) else { return Ok(()) };
        self.under_way -= size;
        let end = to_status(&result);
        self.finish(memory, head, status, end, if end == Status::Ok { written } else { 0 })
    }

    /// Writes the status byte and gives the chain back; `written` counts the data before it.
    fn finish(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        status: GuestAddress,
        end: Status,
        written: u32,
    ) -> Result<(), ChainError> {
        memory
            .write_obj(end as u8, status)
            .map_err(|e| ChainError::Memory(io::Error::other(e.to_string())))?;
        self.queue.queue.add_used(memory, head, written.saturating_add(1))?;
        queue::notify(&mut self.queue, memory, &self.activation.interrupt)
    }

    pub(super) fn serve(&mut self, completions: bool) -> ControlFlow<()> {
        let memory: Arc<GuestMemoryMmap> = self.activation.memory.memory().into_inner();
        let mut served = Ok(());
        if completions {
            for completion in self.backend.completed(&self.disk) {
                served = served.and_then(|()| self.complete(&memory, completion));
            }
        }
        let served = served.and_then(|()| self.take(&memory));
        queue::stop_if_malformed("virtio-blk", served, &self.activation.interrupt)
    }
}

impl Handler for Requests {
    fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
        self.serve(false)
    }

    fn ready(&mut self, token: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        if token == NOTIFICATION {
            queue::clear(&self.queue);
        }
        self.serve(token == COMPLETION)
    }

    fn pause(&mut self) {
        let memory: Arc<GuestMemoryMmap> = self.activation.memory.memory().into_inner();
        let mut ended = Ok(());
        for completion in self.backend.drain(&self.disk) {
            ended = ended.and_then(|()| self.complete(&memory, completion));
        }
        // The driver may have broken the ring meanwhile, of which it is told.
        let _ = queue::stop_if_malformed("virtio-blk", ended, &self.activation.interrupt);
    }

    fn stop(&mut self) {
        self.backend.drain(&self.disk);
        self.pending.clear();
        self.under_way = 0;
    }
}

fn to_status(result: &io::Result<()>) -> Status {
    match result {
        Ok(()) => Status::Ok,
        Err(_) => Status::IoError,
    }
}

fn transfer(
    memory: &Arc<GuestMemoryMmap>,
    direction: Direction,
    offset: u64,
    length: u32,
    data: &[(GuestAddress, u32)],
) -> Result<Work, ChainError> {
    Transfer::new(memory.clone(), direction, offset, length, data)
        .map(Work::Transfer)
        .map_err(ChainError::Memory)
}

/// The serial, cut to the room the driver gave.
fn write_id(
    id: &[u8; ID_LENGTH],
    memory: &GuestMemoryMmap,
    data: &[(GuestAddress, u32)],
) -> Result<u32, ChainError> {
    let mut rest = &id[..];
    for &(address, length) in data {
        let (now, later) = rest.split_at(rest.len().min(length as usize));
        memory.write_slice(now, address).map_err(|e| ChainError::Memory(io::Error::other(e.to_string())))?;
        rest = later;
    }
    Ok(u32::try_from(ID_LENGTH - rest.len()).expect("at most 20"))
}
