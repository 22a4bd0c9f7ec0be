#![expect(unsafe_code, reason = "reads and writes guest memory by system calls")]
//! A transfer between the disk and pieces of guest memory, which it keeps mapped.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::opcode;
use io_uring::squeue;
use io_uring::types;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryMmap;

/// What and where. Immovable once handed to the kernel only in its heap block of pieces.
pub(super) struct Transfer {
    direction: Direction,
    /// Bytes into the disk.
    offset: u64,
    /// Sum of the pieces.
    length: u32,
    pieces: Vec<libc::iovec>,
    /// What the pieces are part of. It stays mapped until every device is gone.
    _memory: Arc<GuestMemoryMmap>,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Into guest memory.
    Read,
    /// To the disk.
    Write,
    /// To the disk, and ended only when they are on it.
    WriteThrough,
}

// SAFETY: the pointers are into `_memory`, which is Send and travels with them.
unsafe impl Send for Transfer {}

impl Transfer {
    /// For pieces inside guest RAM, whose lengths sum up to `length`; an error names the piece that is not.
    pub(super) fn new(
        memory: Arc<GuestMemoryMmap>,
        direction: Direction,
        offset: u64,
        length: u32,
        data: &[(GuestAddress, u32)],
    ) -> io::Result<Self> {
        let mut pieces = Vec::with_capacity(data.len());
        for &(address, length) in data {
            for slice in GuestMemoryBackend::get_slices(&*memory, address, length as usize) {
                let slice = slice.map_err(|e| io::Error::other(e.to_string()))?;
                let guard = slice.ptr_guard_mut();
                pieces.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: slice.len() });
            }
        }
        Ok(Self { direction, offset, length, pieces, _memory: memory })
    }

    /// Bytes to transfer.
    pub(super) fn length(&self) -> u32 {
        self.length
    }

    /// Does it now, whole or an error.
    pub(super) fn run(&self, file: &File) -> io::Result<()> {
        let mut at = self.offset;
        for piece in &self.pieces {
            let mut done = 0;
            while done < piece.iov_len {
                let count = self.step(file, piece, done, at)?;
                done += count;
                at += count as u64;
            }
        }
        if self.direction == Direction::WriteThrough {
            rustix::fs::fdatasync(file)?;
        }
        Ok(())
    }

    /// One system call for the rest of a piece; the bytes it moved, never 0.
    fn step(&self, file: &File, piece: &libc::iovec, done: usize, at: u64) -> io::Result<usize> {
        let offset = libc::off_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (fd, rest) = (file.as_raw_fd(), piece.iov_len - done);
        loop {
            // SAFETY: `piece` is inside guest RAM, mapped as long as `self` lives; `done` is within it.
            let count = unsafe {
                let base = piece.iov_base.cast::<u8>().add(done).cast();
                match self.direction {
                    Direction::Read => libc::pread(fd, base, rest, offset),
                    Direction::Write | Direction::WriteThrough => libc::pwrite(fd, base, rest, offset),
                }
            };
            match usize::try_from(count) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => return Ok(count),
                Err(_) => {
                    let e = io::Error::last_os_error();
                    if e.kind() != io::ErrorKind::Interrupted {
                        return Err(e);
                    }
                }
            }
        }
    }

    /// The same as an io_uring submission; `self` must outlive its completion.
    pub(super) fn entry(&self, fd: types::Fd) -> io::Result<squeue::Entry> {
        let count = u32::try_from(self.pieces.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let pieces = self.pieces.as_ptr();
        let write =
            |flags| opcode::Writev::new(fd, pieces, count).offset(self.offset).rw_flags(flags).build();
        Ok(match self.direction {
            Direction::Read => opcode::Readv::new(fd, pieces, count).offset(self.offset).build(),
            Direction::Write => write(0),
            Direction::WriteThrough => write(libc::RWF_DSYNC),
        })
    }
}
