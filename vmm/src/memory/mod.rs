//! Guest RAM: one memfd, mapped shared, with the architecture's hole left out; and the list of what is plugged.

mod hotplug;
mod ram;

use std::fs::File;
use std::io;
use std::sync::Arc;

use kiai_devices::platform::GuestMemory;
use rustix::fs::MemfdFlags;
use vm_memory::FileOffset;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryMmap;
use vm_memory::GuestMemoryRegion;

pub(crate) use hotplug::HotplugRam;
pub(crate) use hotplug::SECTION;
pub(crate) use ram::Ram;
pub(crate) use ram::Subscription;

use crate::layout;

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// memfd_create or ftruncate failed; with huge pages usually because the host's pool is too small.
    #[error("memory file of {mib} MiB{}", if *.huge_pages { " in 2 MiB pages" } else { "" })]
    File {
        /// Size asked for.
        mib: u32,
        /// Whether 2 MiB pages were asked for.
        huge_pages: bool,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It could not be mapped.
    #[error("map {mib} MiB of guest memory: {reason}")]
    Map {
        /// Size asked for.
        mib: u32,
        /// The reason.
        reason: String,
    },
}

/// Makes and maps `mib` MiB of RAM.
pub(crate) fn allocate(mib: u32, huge_pages: bool) -> Result<GuestMemory, MemoryError> {
    let bytes = u64::from(mib) << 20;
    let file_error = |source| MemoryError::File { mib, huge_pages, source };
    let file = memfd("kiai-ram", bytes, huge_pages).map_err(file_error)?;
    if huge_pages {
        // Reserve now: a pool that is too small would otherwise be a SIGBUS in the middle of the guest.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .map_err(|errno| file_error(errno.into()))?;
    }
    let file = Arc::new(file);
    let mut offset = 0;
    let ranges: Vec<_> = layout::ram_ranges(bytes)
        .into_iter()
        .map(|(start, length)| {
            let at = offset;
            offset += length;
            let length = usize::try_from(length).expect("x86-64 only: usize has 64 bits");
            (GuestAddress(start), length, Some(FileOffset::from_arc(file.clone(), at)))
        })
        .collect();
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges)
        .map_err(|e| MemoryError::Map { mib, reason: e.to_string() })?;
    Ok(GuestMemory::new(memory))
}

/// A file of `bytes` in memory, none of them there yet.
fn memfd(name: &str, bytes: u64, huge_pages: bool) -> io::Result<File> {
    let mut flags = MemfdFlags::CLOEXEC;
    if huge_pages {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let file = File::from(rustix::fs::memfd_create(name, flags)?);
    rustix::fs::ftruncate(&file, bytes)?;
    Ok(file)
}

/// (guest address, host address, length) of each region, for the hypervisor's slots.
pub(crate) fn regions(memory: &GuestMemoryMmap) -> Vec<(u64, u64, u64)> {
    memory.iter().map(|region| (region.start_addr().0, region.as_ptr() as u64, region.len())).collect()
}
