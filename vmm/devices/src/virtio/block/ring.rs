#![expect(unsafe_code, reason = "hands guest memory to the kernel for I/O that ends later")]
//! Work on an io_uring. What the kernel may still reach is kept here until it has said that it is done; a
//! ring is drained before it is dropped.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;

use io_uring::IoUring;
use io_uring::opcode;
use io_uring::register::Restriction;
use io_uring::squeue;
use io_uring::types;
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::eventfd::EventFd;

use super::Disk;
use super::backend::Completion;
use super::backend::Work;

/// All the kernel does for this ring, for good. A ring could open files and sockets as well, past any filter of
/// system calls.
const OPERATIONS: [u8; 4] =
    [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];

pub(super) struct Ring {
    ring: IoUring,
    /// Signalled by the kernel when something has ended.
    event: EventFd,
    depth: usize,
    in_flight: HashMap<u16, Work>,
}

impl Ring {
    pub(super) fn new(depth: u16) -> io::Result<Self> {
        let ring: IoUring = IoUring::builder().setup_r_disabled().build(u32::from(depth))?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        let submitter = ring.submitter();
        submitter.register_eventfd(event.as_raw_fd())?;
        submitter.register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, event, depth: usize::from(depth), in_flight: HashMap::new() })
    }

    pub(super) fn completions(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight.len() < self.depth
    }

    /// Puts work into the submission queue. The tag is in use until the work has ended; the disk's file stays
    /// open longer than that.
    pub(super) fn submit(&mut self, disk: &Disk, tag: u16, work: Work) -> io::Result<()> {
        if self.in_flight.contains_key(&tag) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let entry = entry(types::Fd(disk.file.as_raw_fd()), &work)?.user_data(u64::from(tag));
        // In the map before the kernel can know of it; the pieces' heap block does not move with the Transfer.
        self.in_flight.insert(tag, work);
        // SAFETY: the iovecs live in `in_flight` until the completion is seen; `drop` waits for it, and guest memory
        // stays mapped until every device is gone. The descriptor is the disk's, which outlives the device's worker.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| {
            self.in_flight.remove(&tag);
            io::ErrorKind::WouldBlock.into()
        })
    }

    /// Tells the kernel of what was submitted.
    pub(super) fn kick(&mut self) -> io::Result<()> {
        self.ring.submit().map(|_| ())
    }

    /// What has ended since the last call.
    pub(super) fn completed(&mut self, disk: &Disk) -> Vec<Completion> {
        // Spurious wake-ups leave nothing to read.
        let _ = self.event.read();
        let mut ended = Vec::new();
        for entry in self.ring.completion() {
            let Ok(tag) = u16::try_from(entry.user_data()) else { continue };
            let Some(work) = self.in_flight.remove(&tag) else { continue };
            ended.push((tag, outcome(disk, &work, entry.result())));
        }
        ended
    }
}

fn entry(fd: types::Fd, work: &Work) -> io::Result<squeue::Entry> {
    Ok(match work {
        Work::Transfer(transfer) => transfer.entry(fd)?,
        Work::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        Work::Range { offset, length, mode } => {
            let mode = i32::try_from(mode.bits()).map_err(|_| io::ErrorKind::InvalidInput)?;
            opcode::Fallocate::new(fd, *length).offset(*offset).mode(mode).build()
        }
    })
}

fn outcome(disk: &Disk, work: &Work, result: i32) -> io::Result<()> {
    match work {
        Work::Transfer(transfer) if result >= 0 => {
            let whole = i64::from(result) == i64::from(transfer.length());
            // A short transfer (a signal, more than one call takes): do it the plain way.
            if whole { Ok(()) } else { work.run(disk) }
        }
        // The file or the kernel may not know the operation; the plain way knows what to do then.
        Work::Range { .. } if result < 0 => work.run(disk),
        _ if result < 0 => Err(io::Error::from_raw_os_error(-result)),
        _ => Ok(()),
    }
}

impl Ring {
    /// Waits for all that was submitted, and says how it ended.
    pub(super) fn drain(&mut self, disk: &Disk) -> Vec<Completion> {
        let mut ended = Vec::new();
        while !self.in_flight.is_empty() {
            self.wait();
            ended.append(&mut self.completed(disk));
        }
        ended
    }

    /// Waits until something has ended.
    fn wait(&mut self) {
        // The kernel may still write to guest memory: wait for all of it.
        if let Err(e) = self.ring.submit_and_wait(1)
            && e.raw_os_error() != Some(libc::EINTR)
        {
            // What the kernel may still write to is unmapped with the machine, and something else would come to
            // those addresses. The pod ends before that.
            tracing::error!("virtio-blk: cannot drain io_uring: {e}");
            std::process::abort();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while !self.in_flight.is_empty() {
            self.wait();
            for entry in self.ring.completion() {
                if let Ok(tag) = u16::try_from(entry.user_data()) {
                    self.in_flight.remove(&tag);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_does_nothing_but_what_disks_need() {
        let mut ring = Ring::new(4).unwrap();
        let path = c"/etc/passwd";
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        // SAFETY: the path lives on; the operation has ended before this returns.
        unsafe { ring.ring.submission().push(&open) }.unwrap();
        ring.ring.submit_and_wait(1).unwrap();
        let ended: Vec<_> = ring.ring.completion().map(|entry| entry.result()).collect();
        assert_eq!(ended, [-libc::EACCES]);
    }
}
