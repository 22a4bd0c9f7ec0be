//! The buffers of a descriptor chain as pieces of guest RAM (virtio 1.2 §2.7.4), and vectored I/O between them
//! and a file descriptor: bytes move once, from the socket or tap into guest memory or back.
//!
//! How a driver cuts its data into descriptors means nothing (§2.7.4.1), so nothing here looks at it: a chain
//! is a run of readable bytes, then a run of writable ones. Which bytes mean what is the device's business.

#![expect(
    unsafe_code,
    reason = "readv, writev and sendmsg on guest memory, to which no Rust reference may exist"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use vm_memory::Bytes;
use vm_memory::GuestMemory as _;
use vm_memory::GuestMemoryMmap;
use vm_memory::Permissions;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::Bitmap as _;
use vm_memory::bitmap::MS;

use super::queue::Chain;
use super::queue::ChainError;

/// A piece of guest RAM, contiguous in this process.
pub(crate) type Slice<'m> = VolatileSlice<'m, MS<'m, GuestMemoryMmap>>;

/// Most pieces one system call takes (UIO_MAXIOV).
const MOST_SLICES: usize = 1024;

/// The buffers of one chain.
pub(crate) struct ChainBuffers<'m> {
    /// What the used ring calls the chain.
    pub(crate) head: u16,
    /// What the driver wrote.
    pub(crate) readable: Buffers<'m>,
    /// What the device may write.
    pub(crate) writable: Buffers<'m>,
}

impl<'m> ChainBuffers<'m> {
    /// Walks a chain of a queue with `queue_size` descriptors. An error if it loops, breaks off, is longer
    /// than the queue, leaves RAM, or has a readable descriptor after a writable one (§2.7.4.2, §2.7.5).
    pub(crate) fn new(
        memory: &'m GuestMemoryMmap,
        chain: Chain<'_>,
        queue_size: u16,
    ) -> Result<Self, ChainError> {
        let head = chain.head_index();
        let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
        // The iterator ends alike at the end of a chain and where it breaks; only its last flag tells.
        let mut more = true;
        for (count, descriptor) in chain.enumerate() {
            if count == usize::from(queue_size) {
                return Err(ChainError::Layout("longer than the queue"));
            }
            more = descriptor.has_next();
            let length = descriptor.len() as usize;
            if descriptor.is_write_only() {
                writable.add(memory, descriptor.addr(), length, Permissions::Write)?;
            } else if writable.is_empty() {
                readable.add(memory, descriptor.addr(), length, Permissions::Read)?;
            } else {
                return Err(ChainError::Layout("a readable descriptor after a writable one"));
            }
        }
        if more {
            return Err(ChainError::Layout("breaks off"));
        }
        Ok(Self { head, readable, writable })
    }
}

/// A run of bytes in guest RAM.
#[derive(Default)]
pub(crate) struct Buffers<'m> {
    slices: Vec<Slice<'m>>,
    length: usize,
}

impl<'m> Buffers<'m> {
    fn add(
        &mut self,
        memory: &'m GuestMemoryMmap,
        address: vm_memory::GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<(), ChainError> {
        let outside = |_| ChainError::Layout("outside guest RAM");
        for slice in memory.get_slices(address, length, access).map_err(outside)? {
            self.push(slice.map_err(outside)?)?;
        }
        Ok(())
    }

    fn push(&mut self, slice: Slice<'m>) -> Result<(), ChainError> {
        if self.slices.len() == MOST_SLICES {
            return Err(ChainError::Layout("in too many pieces"));
        }
        // Cannot overflow: a chain is under 4 GiB (virtio_queue ends one that is longer).
        self.length += slice.len();
        self.slices.push(slice);
        Ok(())
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many pieces it is in.
    pub(crate) fn pieces(&self) -> usize {
        self.slices.len()
    }

    /// Removes the first `count` bytes (at most all) and returns them.
    pub(crate) fn take_front(&mut self, count: usize) -> Self {
        let mut front = Self::default();
        let mut left = count.min(self.length);
        let mut whole = 0;
        for slice in &mut self.slices {
            if left == 0 {
                break;
            }
            let part = left.min(slice.len());
            let (head, tail) = slice.split_at(part).expect("no longer than the slice");
            front.slices.push(head);
            front.length += part;
            left -= part;
            if tail.is_empty() {
                whole += 1;
            } else {
                *slice = tail;
            }
        }
        self.slices.drain(..whole);
        self.length -= front.length;
        front
    }

    /// Keeps the first `count` bytes.
    pub(crate) fn truncate(&mut self, count: usize) {
        if count < self.length {
            *self = self.take_front(count);
        }
    }

    /// Copies bytes out, as many as both sides have; returns how many.
    pub(crate) fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            // Fails only for an offset outside the slice; with none left it copies nothing.
            done += slice.read(&mut bytes[done..], 0).unwrap_or(0);
        }
        done
    }

    /// Copies bytes in from `offset` on, as many as both sides have; returns how many.
    pub(crate) fn copy_from(&self, mut offset: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            if offset >= slice.len() {
                offset -= slice.len();
                continue;
            }
            done += slice.write(&bytes[done..], offset).unwrap_or(0);
            offset = 0;
        }
        done
    }

    /// Writes the bytes to a file descriptor.
    pub(crate) fn write_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let mut pieces = Vec::with_capacity(self.slices.len());
        self.describe(&mut pieces);
        // SAFETY: every iovec is inside a slice that outlives the call and is only read.
        result(unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr(), count(&pieces)) })
    }

    /// Sends the bytes on a stream socket. A peer that is gone is an error, never a signal.
    pub(crate) fn send_to(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut pieces = Vec::with_capacity(self.slices.len());
        self.describe(&mut pieces);
        // SAFETY: all zeroes is a valid msghdr: no name, no control data, no pieces.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len();
        // SAFETY: `message` describes `pieces`, each inside a slice that outlives the call and is only read.
        result(unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) })
    }

    fn describe(&self, pieces: &mut Vec<libc::iovec>) {
        pieces.extend(
            self.slices
                .iter()
                .map(|s| libc::iovec { iov_base: s.ptr_guard_mut().as_ptr().cast(), iov_len: s.len() }),
        );
    }

    /// Marks the first `count` bytes as written, where dirty pages are tracked.
    fn mark_written(&self, mut count: usize) {
        for slice in &self.slices {
            let part = count.min(slice.len());
            slice.bitmap().mark_dirty(0, part);
            count -= part;
        }
    }
}

/// Fills `buffers`, one after the other, and then `overflow` by one read from `fd`; returns how many bytes it
/// gave. More than fit into the buffers and `overflow` together may have been lost, as `readv` has it. At most
/// 1023 pieces.
pub(crate) fn read_from<'b, 'm: 'b>(
    fd: BorrowedFd<'_>,
    buffers: impl Iterator<Item = &'b Buffers<'m>> + Clone,
    overflow: &mut [u8],
) -> io::Result<usize> {
    let mut pieces = Vec::with_capacity(buffers.clone().map(Buffers::pieces).sum::<usize>() + 1);
    buffers.clone().for_each(|b| b.describe(&mut pieces));
    if !overflow.is_empty() {
        pieces.push(libc::iovec { iov_base: overflow.as_mut_ptr().cast(), iov_len: overflow.len() });
    }
    // SAFETY: every iovec is inside a slice of guest memory or is `overflow`; both outlive the call, and
    // nothing else refers to `overflow`. Guest memory may change under anybody's hands at any time.
    let read = result(unsafe { libc::readv(fd.as_raw_fd(), pieces.as_ptr(), count(&pieces)) })?;
    let mut left = read;
    for buffers in buffers {
        buffers.mark_written(left.min(buffers.len()));
        left = left.saturating_sub(buffers.len());
    }
    Ok(read)
}

fn count(pieces: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(pieces.len()).expect("bounded by UIO_MAXIOV")
}

fn result(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
impl<'m> Buffers<'m> {
    /// A buffer in this process's own memory.
    pub(crate) fn from_bytes(bytes: &'m mut [u8]) -> Self {
        let length = bytes.len();
        Self { slices: vec![VolatileSlice::from(bytes)], length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn taking_the_front_cuts_without_loss(lengths in prop::collection::vec(0usize..9, 0..9), at in 0usize..90) {
            let mut pieces: Vec<Vec<u8>> = lengths.iter().map(|&n| vec![0; n]).collect();
            let mut buffers = Buffers::default();
            for piece in &mut pieces {
                buffers.push(VolatileSlice::from(&mut piece[..])).unwrap();
            }
            let total: usize = lengths.iter().sum();
            let bytes: Vec<u8> = (0..total).map(|i| i as u8).collect();
            prop_assert_eq!(buffers.copy_from(0, &bytes), total);
            let front = buffers.take_front(at);
            let mut out = vec![0; total];
            let cut = front.copy_to(&mut out);
            prop_assert_eq!(cut, at.min(total));
            prop_assert_eq!(buffers.copy_to(&mut out[cut..]), total - cut);
            prop_assert_eq!((front.len(), buffers.len()), (cut, total - cut));
            prop_assert_eq!(out, bytes);
        }
    }
}
