#![expect(unsafe_code, reason = "maps the host's side of guest RAM")]
//! Where pages of guest RAM come from, and addresses of this process that nothing but guest RAM is put at.
//!
//! By default they are private memory of the process, in transparent huge pages where the host has them: a booting
//! guest touches RAM densely, so 2 MiB a fault cost hardly more memory and spare nine of ten exits. Shared memory
//! would do as well but for one thing: hosts do not give it huge pages unless told to.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::fs::MemfdFlags;
use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use vm_memory::FileOffset;
use vm_memory::GuestAddress;
use vm_memory::GuestRegionMmap;
use vm_memory::mmap::MmapRegionBuilder;

/// Where guest addresses and ours agree: a section of RAM that is plugged in later, and so every size of page.
const ALIGNMENT: usize = 128 << 20;

const PROTECTION: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// Where pages come from.
pub(super) enum Backing {
    /// This process.
    Process,
    /// A file in the host's pool of 2 MiB pages.
    Pool(Arc<File>),
    /// A file that has the contents already. What is written stays in this process.
    Saved(Arc<File>),
}

impl Backing {
    /// For `bytes` of RAM, none of them there yet.
    pub(super) fn new(name: &str, bytes: u64, huge_pages: bool) -> io::Result<Self> {
        if !huge_pages {
            return Ok(Self::Process);
        }
        Ok(Self::Pool(Arc::new(memfd(name, bytes, true)?)))
    }

    /// Puts zeroed RAM at `length` bytes from `offset`, in place of what is there.
    pub(super) fn put(&self, reservation: &Reservation, offset: u64, length: u64) -> io::Result<()> {
        match self {
            Self::Process => reservation.put_memory(offset, length),
            Self::Pool(file) => {
                // Reserve now: a pool that is too small would otherwise be a SIGBUS in the middle of the guest.
                rustix::fs::fallocate(&**file, FallocateFlags::empty(), offset, length)?;
                reservation.put_file(offset, length, file, offset)
            }
            Self::Saved(file) => reservation.put_copy(offset, length, file, offset),
        }
    }

    /// Gives back what was put there; something else has been put in its place.
    pub(super) fn give_back(&self, offset: u64, length: u64) -> io::Result<()> {
        match self {
            Self::Process | Self::Saved(_) => Ok(()),
            Self::Pool(file) => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(&**file, punch, offset, length)?)
            }
        }
    }

    /// RAM at guest address `guest`, as devices see it.
    ///
    /// The region does not keep `reservation`: the caller does, for as long as the region is in anybody's hands.
    pub(super) fn region(
        &self,
        reservation: &Reservation,
        guest: u64,
        range: &Range<u64>,
    ) -> io::Result<GuestRegionMmap> {
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let kind = match self {
            Self::Process => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            Self::Saved(_) => libc::MAP_PRIVATE,
            Self::Pool(_) => libc::MAP_SHARED,
        };
        let mut builder = MmapRegionBuilder::new(length)
            .with_mmap_prot(i32::try_from(PROTECTION.bits()).map_err(io::Error::other)?)
            .with_mmap_flags(kind | libc::MAP_NORESERVE);
        if let Self::Pool(file) = self {
            builder = builder.with_file_offset(FileOffset::from_arc(file.clone(), range.start));
        }
        let start = reservation.within(range.start, range.end - range.start)?;
        // SAFETY: the range lies inside the reservation, which the caller keeps. What is not mapped readable and
        // writable there yet is by the time that anybody is shown the region.
        let builder = unsafe { builder.with_raw_mmap_pointer(start) };
        let mapping = builder.build().map_err(io::Error::other)?;
        GuestRegionMmap::new(mapping, GuestAddress(guest)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// A file of `bytes` in memory, none of them there yet.
pub(super) fn memfd(name: &str, bytes: u64, huge_pages: bool) -> io::Result<File> {
    let mut flags = MemfdFlags::CLOEXEC;
    if huge_pages {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let file = File::from(rustix::fs::memfd_create(name, flags)?);
    rustix::fs::ftruncate(&file, bytes)?;
    Ok(file)
}

/// Addresses of this process that nothing else is put at. Dropped when nobody has an address in it any more.
pub(crate) struct Reservation {
    start: *mut u8,
    length: usize,
    /// With what was skipped for the alignment.
    whole: *mut u8,
    whole_length: usize,
}

// SAFETY: it is a range of addresses; what is mapped there is guest RAM, accessed as memory that others change.
unsafe impl Send for Reservation {}
// SAFETY: see above; its methods change mappings, which the kernel does atomically.
unsafe impl Sync for Reservation {}

impl Reservation {
    pub(crate) fn new(length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let whole_length = length.checked_add(ALIGNMENT).ok_or(io::ErrorKind::InvalidInput)?;
        let (none, flags) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
        let whole = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), whole_length, none, flags)? };
        let whole: *mut u8 = whole.cast();
        let start = whole.wrapping_add(whole.align_offset(ALIGNMENT));
        Ok(Self { start, length, whole, whole_length })
    }

    pub(super) fn address(&self) -> u64 {
        self.start as u64
    }

    /// Maps `length` bytes of `file` from `at` to `offset`, in place of what is there.
    pub(super) fn put_file(&self, offset: u64, length: u64, file: &File, at: u64) -> io::Result<()> {
        let start = self.within(offset, length)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is inside our own reservation, where only guest memory is ever mapped; it stays
        // mapped throughout, and who uses it expects memory that changes at any time.
        unsafe { rustix::mm::mmap(start.cast(), length, PROTECTION, flags, file, at)? };
        Ok(())
    }

    /// Maps what `file` has from `at` to `offset`, in place of what is there. A page that is written to becomes this
    /// process's own.
    pub(super) fn put_copy(&self, offset: u64, length: u64, file: &File, at: u64) -> io::Result<()> {
        let start = self.within(offset, length)?.cast();
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as in `put_file`.
        unsafe { rustix::mm::mmap(start, length, PROTECTION, flags, file, at)? };
        Self::keep_to_itself(start, length)
    }

    /// A child that is started must not share it: a page would be copied under a device that reaches it by DMA. And
    /// what a guest knows has no place in a core file of ours.
    fn keep_to_itself(start: *mut std::ffi::c_void, length: usize) -> io::Result<()> {
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: this changes what happens to the range elsewhere, not what is in it.
            unsafe { rustix::mm::madvise(start, length, advice)? };
        }
        Ok(())
    }

    /// Maps fresh memory of this process to `offset`, in place of what is there.
    fn put_memory(&self, offset: u64, length: u64) -> io::Result<()> {
        let start = self.within(offset, length)?.cast();
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as in `put_file`.
        unsafe { rustix::mm::mmap_anonymous(start, length, PROTECTION, flags)? };
        Self::keep_to_itself(start, length)?;
        // SAFETY: a page's size is not seen by who uses it.
        if let Err(error) = unsafe { rustix::mm::madvise(start, length, Advice::LinuxHugepage) } {
            tracing::debug!("no transparent huge pages: {error}");
        }
        Ok(())
    }

    /// The address of `length` bytes from `offset`, which have to be inside.
    fn within(&self, offset: u64, length: u64) -> io::Result<*mut u8> {
        let end = offset.checked_add(length).filter(|&end| end <= self.length as u64);
        end.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.start.wrapping_add(usize::try_from(offset).map_err(io::Error::other)?))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the machine's threads and devices are gone, so nobody has an address in here any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.whole.cast(), self.whole_length) } {
            tracing::error!("addresses of guest RAM stay reserved: {error}");
        }
    }
}
