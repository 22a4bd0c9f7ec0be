//! One virtqueue of FUSE requests (virtio 1.2 §5.11.6): a chain holds the request, then room for the reply.

use std::fs::File;
use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use fuse_backend_rs::abi::fuse_abi::InHeader;
use fuse_backend_rs::abi::fuse_abi::Opcode;
use fuse_backend_rs::abi::fuse_abi::OutHeader;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::Reader;
use fuse_backend_rs::transport::VirtioFsWriter;
use kiai_devices::virtio::device::Position;
use kiai_devices::virtio::queue::INDIRECT;
use virtio_queue_0_17::DescriptorChain;
use virtio_queue_0_17::Queue;
use virtio_queue_0_17::QueueOwnedT;
use virtio_queue_0_17::QueueT;
use vm_memory_0_17::ByteValued;
use vm_memory_0_17::GuestAddress;
use vm_memory_0_17::GuestMemoryMmap;

use crate::share::Share;
use crate::view::RamView;

/// Most bytes in either direction of one request: the largest FUSE message (1 MiB of data) with ample room for
/// its headers.
const MESSAGE_MAX: usize = (1 << 20) + (1 << 16);

/// The file system and its FUSE decoder, for one activation of the device.
pub(crate) struct FuseServer {
    server: Server<Share>,
    /// Set from the guest's first message to its last.
    mounted: Arc<AtomicBool>,
}

impl FuseServer {
    /// Shares the open `directory`, with at most so many descriptors in the guest's hands.
    /// `mounted` is set while the guest may hold anything of it.
    pub(crate) fn new(
        directory: &File,
        descriptors: usize,
        mounted: Arc<AtomicBool>,
    ) -> io::Result<FuseServer> {
        Ok(FuseServer { server: Server::new(Share::new(directory, descriptors)?), mounted })
    }

    /// Notes what a message means for who holds what.
    fn note(&self, header: &InHeader) {
        if header.opcode == Opcode::Init as u32 {
            self.mounted.store(true, Ordering::Release);
        } else if header.opcode == Opcode::Destroy as u32 {
            self.mounted.store(false, Ordering::Release);
        }
    }
}

/// The driver broke the queue's rules; the device must stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    /// Ring positions or addresses that cannot be.
    #[error("broken ring: {0}")]
    Ring(#[from] virtio_queue_0_17::Error),
    /// A chain that reaches outside of guest RAM or overlaps the end of a region.
    #[error("broken descriptor chain: {0}")]
    Chain(#[from] fuse_backend_rs::transport::Error),
    /// A chain that does not end as one must.
    #[error("broken descriptor chain: {0}")]
    Layout(&'static str),
    /// A chain longer than any FUSE message.
    #[error("a request of {request} bytes with room for a reply of {reply}")]
    TooLong {
        /// Bytes the driver wrote.
        request: usize,
        /// Bytes it left for the device.
        reply: usize,
    },
}

/// What one call of [`Requests::serve`] came to.
pub(crate) enum Served {
    /// No request was waiting.
    Nothing,
    /// One request was served; `notify` if the driver wants to hear of it now.
    One {
        /// Whether to interrupt.
        notify: bool,
    },
}

/// A queue the driver set up, in the older version's type.
pub(crate) struct Requests {
    queue: Queue,
}

impl Requests {
    /// Takes over a ready queue, with its positions.
    pub(crate) fn new(ready: &virtio_queue::Queue) -> Result<Requests, Malformed> {
        use virtio_queue::QueueT as _;
        let mut queue = Queue::new(ready.max_size())?;
        queue.try_set_size(ready.size())?;
        queue.try_set_desc_table_address(GuestAddress(ready.desc_table()))?;
        queue.try_set_avail_ring_address(GuestAddress(ready.avail_ring()))?;
        queue.try_set_used_ring_address(GuestAddress(ready.used_ring()))?;
        queue.set_next_avail(ready.next_avail());
        queue.set_next_used(ready.next_used());
        queue.set_event_idx(ready.event_idx_enabled());
        queue.set_ready(true);
        Ok(Requests { queue })
    }

    /// Where it is.
    pub(crate) fn position(&self, index: u16) -> Position {
        Position { index, next_avail: self.queue.next_avail(), next_used: self.queue.next_used() }
    }

    /// Serves the next request, if there is one. Returns when its reply is in the used ring.
    pub(crate) fn serve(&mut self, server: &FuseServer, ram: &RamView<'_>) -> Result<Served, Malformed> {
        let memory = ram.memory();
        let most = usize::from(self.queue.size().max(INDIRECT));
        let Some(chain) = self.queue.iter(memory)?.next() else { return Ok(Served::Nothing) };
        check_whole(chain.clone(), most)?;
        let head = chain.head_index();
        let written = reply(server, memory, chain)?;
        self.queue.add_used(memory, head, written)?;
        Ok(Served::One { notify: self.queue.needs_notification(memory)? })
    }

    /// Asks for notifications again; true if requests came in meanwhile and [`Requests::serve`] is due.
    pub(crate) fn enable_notification(&mut self, ram: &RamView<'_>) -> Result<bool, Malformed> {
        Ok(self.queue.enable_notification(ram.memory())?)
    }

    /// Tells the driver that it need not notify while the queue is being worked on.
    pub(crate) fn disable_notification(&mut self, ram: &RamView<'_>) -> Result<(), Malformed> {
        Ok(self.queue.disable_notification(ram.memory())?)
    }
}

/// The rule of [`kiai_devices::virtio::queue::next`] for the older type: a chain ends with a descriptor that says
/// so. Its iterator ends at whatever it cannot follow, as if the chain ended there.
fn check_whole(chain: DescriptorChain<&GuestMemoryMmap>, most: usize) -> Result<(), Malformed> {
    match chain.take(most + 1).enumerate().last() {
        None => Err(Malformed::Layout("its first descriptor cannot be read")),
        Some((before, _)) if before >= most => Err(Malformed::Layout("too many descriptors")),
        Some((_, descriptor)) if descriptor.has_next() => {
            Err(Malformed::Layout("it loops, is over 4 GiB or leads where nothing is"))
        }
        Some(_) => Ok(()),
    }
}

/// Answers the request in `chain`; the number of bytes written to it.
fn reply(
    server: &FuseServer,
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
) -> Result<u32, Malformed> {
    let reader = Reader::from_descriptor_chain(memory, chain.clone())?;
    let writer = VirtioFsWriter::new(memory, chain.clone())?;
    // Measured on what will be used, not on the descriptors, which the guest can still change.
    let (request, room) = (reader.available_bytes(), writer.available_bytes());
    if request > MESSAGE_MAX || room > MESSAGE_MAX {
        return Err(Malformed::TooLong { request, reply: room });
    }
    let header = Reader::from_descriptor_chain(memory, chain.clone())?.read_obj::<InHeader>();
    header.iter().for_each(|header| server.note(header));
    let written = match server.server.handle_message(reader, writer.into(), None, None) {
        Ok(written) => written,
        Err(error) => {
            tracing::debug!(%error, "virtio-fs: a request that cannot be decoded");
            reply_undecodable(memory, chain)?
        }
    };
    Ok(u32::try_from(written).expect("a reply fits its chain, which is bounded"))
}

/// Answers a message the server could not make sense of with EINVAL, so that whoever waits for it does not
/// wait forever. FORGETs want no answer, and without room there is none.
fn reply_undecodable(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
) -> Result<usize, Malformed> {
    let header = Reader::from_descriptor_chain(memory, chain.clone())?.read_obj::<InHeader>();
    let header = header.unwrap_or_default();
    if header.opcode == Opcode::Forget as u32 || header.opcode == Opcode::BatchForget as u32 {
        return Ok(0);
    }
    let length = size_of::<OutHeader>();
    let reply = OutHeader {
        len: u32::try_from(length).expect("a few bytes"),
        error: -libc::EINVAL,
        unique: header.unique,
    };
    let mut writer = VirtioFsWriter::new(memory, chain)?;
    Ok(if writer.write_all(reply.as_slice()).is_ok() { length } else { 0 })
}
