//! Guest RAM: one range of addresses in this process, the architecture's hole left out of the guest's; and the list
//! of what is plugged.

mod backing;
mod hotplug;
mod image;
mod ram;

use std::fs::File;
use std::io;
use std::sync::Arc;

use kiai_devices::platform::GuestMemory;
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryMmap;
use vm_memory::GuestMemoryRegion;

use backing::Backing;

pub(crate) use backing::Reservation;
pub(crate) use hotplug::HotplugRam;
pub(crate) use hotplug::SECTION;
pub(crate) use image::Part;
pub(crate) use image::write as write_image;
pub(crate) use ram::Ram;
pub(crate) use ram::Subscription;

use crate::config::Contents;
use crate::layout;

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has none; with huge pages usually because its pool is too small.
    #[error("memory of {mib} MiB{}", if *.huge_pages { " in 2 MiB pages" } else { "" })]
    Backing {
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

/// RAM that the guest boots with: as devices see it, and the addresses it is at, which are to be kept until no
/// device and no vCPU is left.
pub(crate) fn allocate(mib: u32, huge_pages: bool) -> Result<(GuestMemory, Reservation), MemoryError> {
    let bytes = u64::from(mib) << 20;
    let backing = Backing::new("kiai-ram", bytes, huge_pages).map_err(|source| MemoryError::Backing {
        mib,
        huge_pages,
        source,
    })?;
    place(mib, &backing).map_err(|error| match error {
        MemoryError::Backing { mib, source, .. } => MemoryError::Backing { mib, huge_pages, source },
        error => error,
    })
}

/// The same, with the contents that `file` has: copied, or mapped, and then `file` must stay as it is. Whatever is written
/// stays in this process.
pub(crate) fn restore(
    mib: u32,
    file: Arc<File>,
    contents: Contents,
) -> Result<(GuestMemory, Reservation), MemoryError> {
    match contents {
        Contents::Mapped => place(mib, &Backing::Saved(file)),
        Contents::Copied => {
            let (memory, reservation) = place(mib, &Backing::Process)?;
            image::read(&vm_memory::GuestAddressSpace::memory(&memory), &file)
                .map_err(|source| MemoryError::Backing { mib, huge_pages: false, source })?;
            Ok((memory, reservation))
        }
    }
}

fn place(mib: u32, backing: &Backing) -> Result<(GuestMemory, Reservation), MemoryError> {
    let bytes = u64::from(mib) << 20;
    let map_error = |error: io::Error| MemoryError::Map { mib, reason: error.to_string() };
    let reservation = Reservation::new(bytes).map_err(map_error)?;
    backing.put(&reservation, 0, bytes).map_err(|source| MemoryError::Backing {
        mib,
        huge_pages: false,
        source,
    })?;
    let mut offset = 0;
    let regions = layout::ram_ranges(bytes).into_iter().map(|(guest, length)| {
        let range = offset..offset + length;
        offset = range.end;
        backing.region(&reservation, guest, &range)
    });
    let regions = regions.collect::<io::Result<_>>().map_err(map_error)?;
    let memory = GuestMemoryMmap::from_regions(regions)
        .map_err(|error| MemoryError::Map { mib, reason: error.to_string() })?;
    Ok((GuestMemory::new(memory), reservation))
}

/// A file of `bytes` in memory.
#[cfg(test)]
pub(crate) fn memory_file(name: &str, bytes: u64) -> io::Result<File> {
    backing::memfd(name, bytes, false)
}

/// (guest address, host address, length) of each region, for the hypervisor's slots.
pub(crate) fn regions(memory: &GuestMemoryMmap) -> Vec<(u64, u64, u64)> {
    memory.iter().map(|region| (region.start_addr().0, region.as_ptr() as u64, region.len())).collect()
}
