//! The disk's I/O: io_uring where the host has it, otherwise system calls on the device's thread.

use std::io;
use std::os::fd::RawFd;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::Disk;
use super::ring::Ring;
use super::transfer::Transfer;
use crate::log_limit::LogLimit;

/// What a disk can be told to do.
pub(super) enum Work {
    Transfer(Transfer),
    Flush,
    /// Discards or zeroes a range, as `mode` says.
    Range {
        offset: u64,
        length: u64,
        mode: FallocateFlags,
    },
}

impl Work {
    /// Deallocates a range: it may read as anything.
    pub(super) fn discard(offset: u64, length: u64) -> Self {
        Self::Range { offset, length, mode: FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE }
    }

    /// Makes a range read as zero; its space is kept unless `unmap`.
    pub(super) fn write_zeroes(offset: u64, length: u64, unmap: bool) -> Self {
        let mode = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        Self::Range { offset, length, mode: mode | FallocateFlags::KEEP_SIZE }
    }

    /// Does it now, on this thread.
    pub(super) fn run(&self, disk: &Disk) -> io::Result<()> {
        match *self {
            Self::Transfer(ref transfer) => transfer.run(&disk.file),
            Self::Flush => rustix::fs::fdatasync(&disk.file).map_err(io::Error::from),
            Self::Range { length: 0, .. } => Ok(()),
            Self::Range { offset, length, mode } => {
                match rustix::fs::fallocate(&disk.file, mode, offset, length) {
                    // Zeroes are what both discard and write-zeroes may leave.
                    Err(Errno::OPNOTSUPP) => write_zeroes(disk, offset, length),
                    other => other.map_err(io::Error::from),
                }
            }
        }
    }
}

fn write_zeroes(disk: &Disk, mut offset: u64, length: u64) -> io::Result<()> {
    let zeroes = [0u8; 64 << 10];
    let end = offset + length;
    while offset < end {
        let count = zeroes.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        std::os::unix::fs::FileExt::write_all_at(&disk.file, &zeroes[..count], offset)?;
        offset += count as u64;
    }
    Ok(())
}

/// How work is done.
pub(super) enum Backend {
    Ring(Box<Ring>),
    Synchronous,
}

/// Work that has ended: its tag and how.
pub(super) type Completion = (u16, io::Result<()>);

impl Backend {
    /// io_uring with room for `depth` pieces of work, or the fallback where the host refuses it (seccomp, an
    /// old kernel, a sysctl).
    pub(super) fn new(depth: u16) -> Self {
        match Ring::new(depth) {
            Ok(ring) => Self::Ring(Box::new(ring)),
            Err(e) => {
                // Each time a disk is attached.
                static REPORTS: LogLimit = LogLimit::new();
                if REPORTS.allows() {
                    tracing::info!("virtio-blk: no io_uring here ({e}), using pread and pwrite");
                }
                Self::Synchronous
            }
        }
    }

    /// The descriptor that becomes readable when work has ended.
    pub(super) fn completions(&self) -> Option<RawFd> {
        match self {
            Self::Ring(ring) => Some(ring.completions()),
            Self::Synchronous => None,
        }
    }

    /// Starts work; its end may be returned at once or come from [`Backend::completed`].
    pub(super) fn submit(&mut self, disk: &Disk, tag: u16, work: Work) -> Option<Completion> {
        match self {
            Self::Ring(ring) => ring.submit(disk, tag, work).err().map(|e| (tag, Err(e))),
            Self::Synchronous => Some((tag, work.run(disk))),
        }
    }

    /// Tells the kernel of everything submitted since the last call.
    pub(super) fn kick(&mut self) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.kick(),
            Self::Synchronous => Ok(()),
        }
    }

    /// What has ended since the last call.
    pub(super) fn completed(&mut self, disk: &Disk) -> Vec<Completion> {
        match self {
            Self::Ring(ring) => ring.completed(disk),
            Self::Synchronous => Vec::new(),
        }
    }

    /// Waits for all that was started, and says how it ended.
    pub(super) fn drain(&mut self, disk: &Disk) -> Vec<Completion> {
        match self {
            Self::Ring(ring) => ring.drain(disk),
            Self::Synchronous => Vec::new(),
        }
    }

    /// Whether more work can be started.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.has_room(),
            Self::Synchronous => true,
        }
    }
}
