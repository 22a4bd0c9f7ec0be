#![expect(unsafe_code, reason = "tells the kernel that pages of guest memory are not needed")]
//! Pages of guest RAM given back to the host. Afterwards they read as zero, or as what a private mapping was
//! made of.

use std::io;

use rustix::fs::FallocateFlags;
use rustix::mm::Advice;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryMmap;
use vm_memory::GuestMemoryRegion;
use vm_memory::GuestRegionMmap;

use super::PAGE;

/// Gives back the whole pages of a range; returns how many bytes. A range that is not all RAM is an error, of
/// which a part may have been given back.
pub(super) fn reclaim(memory: &GuestMemoryMmap, start: u64, length: u64) -> io::Result<u64> {
    let outside = || io::Error::other(format!("{start:#x}+{length:#x} is not RAM"));
    let end = start.checked_add(length).ok_or_else(outside)? / PAGE * PAGE;
    let mut at = start.checked_next_multiple_of(PAGE).ok_or_else(outside)?;
    let mut given = 0;
    while at < end {
        let region = memory.find_region(GuestAddress(at)).ok_or_else(outside)?;
        let offset = at - region.start_addr().0;
        let count = (end - at).min(region.len() - offset);
        discard(region, offset, count)?;
        at += count;
        given += count;
    }
    Ok(given)
}

/// `offset` and `count` are within the region.
fn discard(region: &GuestRegionMmap, offset: u64, count: u64) -> io::Result<()> {
    let shared = region.flags() & libc::MAP_SHARED == libc::MAP_SHARED;
    match region.file_offset() {
        // Dropping a shared mapping's pages frees nothing: the file keeps them.
        Some(file) if shared => {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file.file(), punch, file.start() + offset, count)?;
        }
        _ => {
            let (offset, count) = match (usize::try_from(offset), usize::try_from(count)) {
                (Ok(offset), Ok(count)) => (offset, count),
                _ => return Err(io::ErrorKind::InvalidInput.into()),
            };
            // SAFETY: the range is inside the region's mapping, which stays until every device is gone. The pages stay mapped
            // and readable; what they held was the guest's to give up, and guest memory is only ever accessed
            // as memory that changes at any time.
            unsafe {
                let address = region.as_ptr().add(offset).cast();
                rustix::mm::madvise(address, count, Advice::LinuxDontNeed)?;
            }
        }
    }
    Ok(())
}
