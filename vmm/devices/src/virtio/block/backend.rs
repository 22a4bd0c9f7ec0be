#![expect(unsafe_code, reason = "hands guest memory to the kernel for I/O that ends later")]
//! The disk's I/O: io_uring where the host has it, otherwise pread and pwrite on the device's thread.
//!
//! Guest memory handed to the kernel must stay mapped until the kernel is done with it: each submitted
//! request keeps a guard on the memory it reaches, and a ring is drained before it is dropped.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;

use io_uring::IoUring;
use io_uring::opcode;
use io_uring::types;
use rustix::fs::FallocateFlags;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::eventfd::EventFd;

use super::Disk;
use super::request::Operation;

/// A transfer between the disk and pieces of guest memory.
pub(super) struct Transfer {
    /// Into guest memory.
    pub(super) read: bool,
    pub(super) offset: u64,
    /// Sum of the pieces.
    pub(super) length: u32,
    pieces: Vec<libc::iovec>,
    /// Keeps the pieces mapped.
    _memory: Arc<GuestMemoryMmap>,
}

// SAFETY: the pointers are into `_memory`, which is Send and travels with them.
unsafe impl Send for Transfer {}

impl Transfer {
    /// For pieces inside guest RAM; an error names the piece that is not.
    pub(super) fn new(
        memory: Arc<GuestMemoryMmap>,
        read: bool,
        offset: u64,
        length: u32,
        data: &[(vm_memory::GuestAddress, u32)],
    ) -> io::Result<Self> {
        let mut pieces = Vec::with_capacity(data.len());
        for &(address, length) in data {
            for slice in vm_memory::GuestMemoryBackend::get_slices(&*memory, address, length as usize) {
                let slice = slice.map_err(|e| io::Error::other(e.to_string()))?;
                let guard = slice.ptr_guard_mut();
                pieces.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: slice.len() });
            }
        }
        Ok(Self { read, offset, length, pieces, _memory: memory })
    }

    /// Does it now, whole or an error.
    fn run(&self, file: RawFd) -> io::Result<()> {
        let mut at = self.offset;
        for piece in &self.pieces {
            let mut done = 0;
            while done < piece.iov_len {
                let offset = libc::off_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
                // SAFETY: `piece` is inside guest RAM, mapped as long as `self` lives; `done` is within it.
                let count = unsafe {
                    let base = piece.iov_base.cast::<u8>().add(done).cast();
                    if self.read {
                        libc::pread(file, base, piece.iov_len - done, offset)
                    } else {
                        libc::pwrite(file, base, piece.iov_len - done, offset)
                    }
                };
                match usize::try_from(count) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => {
                        done += count;
                        at += count as u64;
                    }
                    Err(_) => {
                        let e = io::Error::last_os_error();
                        if e.kind() != io::ErrorKind::Interrupted {
                            return Err(e);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Flush, discard and write-zeroes, done at once.
pub(super) fn run_now(disk: &Disk, operation: &Operation) -> io::Result<()> {
    let file = &disk.file;
    match *operation {
        Operation::Flush => rustix::fs::fdatasync(file).map_err(io::Error::from),
        Operation::Discard { offset, length } => {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(file, punch, offset, length) {
                // A discard is advice: a file system that cannot punch holes has done its part.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
                Err(e) => Err(e.into()),
            }
        }
        Operation::WriteZeroes { offset, length, unmap } => {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            let done = rustix::fs::fallocate(file, if unmap { punch } else { zero }, offset, length);
            match done {
                Err(rustix::io::Errno::OPNOTSUPP) => write_zeroes(file, offset, length),
                other => other.map_err(io::Error::from),
            }
        }
        _ => unreachable!("transfers and refusals do not come here"),
    }
}

fn write_zeroes(file: &std::fs::File, mut offset: u64, length: u64) -> io::Result<()> {
    let zeroes = [0u8; 64 << 10];
    let end = offset + length;
    while offset < end {
        let count = zeroes.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        std::os::unix::fs::FileExt::write_all_at(file, &zeroes[..count], offset)?;
        offset += count as u64;
    }
    Ok(())
}

/// How transfers are done.
pub(super) enum Backend {
    Ring(Box<Ring>),
    Synchronous,
}

/// A transfer that has ended: its tag and how.
pub(super) type Completion = (u16, io::Result<()>);

impl Backend {
    /// io_uring with room for `depth` transfers, or the fallback where the host refuses it (seccomp, an old
    /// kernel, a sysctl).
    pub(super) fn new(depth: u16) -> Self {
        match Ring::new(depth) {
            Ok(ring) => Self::Ring(Box::new(ring)),
            Err(e) => {
                tracing::info!("virtio-blk: no io_uring here ({e}), using pread and pwrite");
                Self::Synchronous
            }
        }
    }

    /// The descriptor that becomes readable when transfers have ended.
    pub(super) fn completions(&self) -> Option<RawFd> {
        match self {
            Self::Ring(ring) => Some(ring.event.as_raw_fd()),
            Self::Synchronous => None,
        }
    }

    /// Starts a transfer; its end may be returned at once or come from [`Backend::completed`].
    pub(super) fn submit(&mut self, disk: &Disk, tag: u16, transfer: Transfer) -> Option<Completion> {
        let file = disk.file.as_raw_fd();
        match self {
            Self::Ring(ring) => ring.submit(file, tag, transfer),
            Self::Synchronous => Some((tag, transfer.run(file))),
        }
    }

    /// Tells the kernel of everything submitted since the last call.
    pub(super) fn kick(&mut self) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.ring.submit().map(|_| ()),
            Self::Synchronous => Ok(()),
        }
    }

    /// What has ended since the last call.
    pub(super) fn completed(&mut self, disk: &Disk) -> Vec<Completion> {
        match self {
            Self::Ring(ring) => ring.completed(disk.file.as_raw_fd()),
            Self::Synchronous => Vec::new(),
        }
    }

    /// Whether another transfer can be started.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.in_flight.len() < ring.depth,
            Self::Synchronous => true,
        }
    }
}

pub(super) struct Ring {
    ring: IoUring,
    event: EventFd,
    depth: usize,
    in_flight: HashMap<u16, Transfer>,
}

impl Ring {
    fn new(depth: u16) -> io::Result<Self> {
        let ring = IoUring::new(u32::from(depth))?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self { ring, event, depth: usize::from(depth), in_flight: HashMap::new() })
    }

    fn submit(&mut self, file: RawFd, tag: u16, transfer: Transfer) -> Option<Completion> {
        let fd = types::Fd(file);
        let (pieces, count) = (transfer.pieces.as_ptr(), transfer.pieces.len());
        let Ok(count) = u32::try_from(count) else {
            return Some((tag, Err(io::ErrorKind::InvalidInput.into())));
        };
        let entry = if transfer.read {
            opcode::Readv::new(fd, pieces, count).offset(transfer.offset).build()
        } else {
            opcode::Writev::new(fd, pieces, count).offset(transfer.offset).build()
        };
        // The vector's heap block does not move with the Transfer.
        if self.in_flight.contains_key(&tag) {
            // The driver gave the same head twice while the first is in flight: it broke the rules, and the
            // first transfer must keep its memory.
            return Some((tag, Err(io::ErrorKind::AlreadyExists.into())));
        }
        self.in_flight.insert(tag, transfer);
        // SAFETY: the iovecs and the guest memory they name live in `in_flight` until the completion is seen;
        // `drop` waits for it. The descriptor is the disk's, which outlives the device's worker.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(u64::from(tag))) };
        if pushed.is_err() {
            self.in_flight.remove(&tag);
            return Some((tag, Err(io::ErrorKind::WouldBlock.into())));
        }
        None
    }

    fn completed(&mut self, file: RawFd) -> Vec<Completion> {
        let _ = self.event.read();
        let mut ended = Vec::new();
        for entry in self.ring.completion() {
            let Ok(tag) = u16::try_from(entry.user_data()) else { continue };
            let Some(transfer) = self.in_flight.remove(&tag) else { continue };
            let result = match entry.result() {
                e if e < 0 => Err(io::Error::from_raw_os_error(-e)),
                count if i64::from(count) == i64::from(transfer.length) => Ok(()),
                // A short transfer (a signal, the end of a page cache read): finish it the plain way.
                _ => transfer.run(file),
            };
            ended.push((tag, result));
        }
        ended
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write to guest memory: wait for all of it.
        while !self.in_flight.is_empty() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => continue,
                Err(e) => {
                    // Letting go of memory the kernel may write to is not an option; keep it mapped for good.
                    tracing::error!("virtio-blk: cannot drain io_uring: {e}");
                    std::mem::forget(std::mem::take(&mut self.in_flight));
                    return;
                }
            }
            for entry in self.ring.completion() {
                if let Ok(tag) = u16::try_from(entry.user_data()) {
                    self.in_flight.remove(&tag);
                }
            }
        }
    }
}
