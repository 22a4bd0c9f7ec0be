//! Guest RAM as the older `vm-memory` sees it: the same mapping under a second type, nothing copied.
#![expect(unsafe_code, reason = "names memory that another version of vm-memory has mapped")]

use std::marker::PhantomData;

use vm_memory::Address;
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryMmap;
use vm_memory::GuestMemoryRegion;
use vm_memory_0_17 as older;

/// A view of all guest RAM, valid while the snapshot it was made from is borrowed.
pub(crate) struct RamView<'a> {
    memory: older::GuestMemoryMmap,
    snapshot: PhantomData<&'a GuestMemoryMmap>,
}

/// The older `vm-memory` does not take a region that the newer one does. A defect of ours, not of the guest.
#[derive(Debug, thiserror::Error)]
#[error("guest RAM at {0:#x} cannot be shared with the FUSE server")]
pub(crate) struct ViewError(u64);

impl<'a> RamView<'a> {
    /// Views `snapshot`. A handful of small allocations: cheap enough for each batch of requests.
    pub(crate) fn of(snapshot: &'a GuestMemoryMmap) -> Result<RamView<'a>, ViewError> {
        let regions = snapshot.iter().map(|region| {
            let start = region.start_addr().raw_value();
            // SAFETY: the newer version's region is one live mapping of `size` bytes at a page boundary, and it
            // stays mapped while `snapshot` is borrowed, which the view's lifetime sees to. A region built from
            // a raw pointer does not unmap it when dropped.
            let mapping = unsafe {
                older::MmapRegion::build_raw(region.as_ptr(), region.size(), region.prot(), region.flags())
            };
            mapping
                .ok()
                .and_then(|mapping| older::GuestRegionMmap::new(mapping, older::GuestAddress(start)))
                .ok_or(ViewError(start))
        });
        let regions = regions.collect::<Result<Vec<_>, _>>()?;
        let memory = older::GuestMemoryMmap::from_regions(regions).map_err(|_| ViewError(0))?;
        Ok(RamView { memory, snapshot: PhantomData })
    }

    /// The view in the older version's type.
    pub(crate) fn memory(&self) -> &older::GuestMemoryMmap {
        &self.memory
    }
}
