#![expect(unsafe_code, reason = "lays out guest RAM by hand")]
//! Guest RAM with something to trip over on both sides: bytes of a pattern, which tell when somebody has
//! written past the end, the kernel included, and beyond them pages that cannot be touched.

use std::ffi::c_void;

use rustix::mm::MapFlags;
use rustix::mm::MprotectFlags;
use rustix::mm::ProtFlags;
use vm_memory::GuestAddress;
use vm_memory::GuestRegionMmap;
use vm_memory::mmap::MmapRegionBuilder;

const FENCE: usize = 16 << 10;
const GUARD: usize = 1 << 20;
const PATTERN: u8 = 0xf3;

/// A piece of RAM. The regions made of it must not be used any more when it goes.
pub(super) struct Fenced {
    /// Start of it all.
    mapping: *mut c_void,
    /// Bytes of RAM.
    length: usize,
}

// SAFETY: the mapping belongs to this value alone, and it hands out no references into it.
unsafe impl Send for Fenced {}
// SAFETY: as above; its methods read memory by volatile accesses.
unsafe impl Sync for Fenced {}

impl Fenced {
    pub(super) fn new(length: usize) -> Self {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping wherever the kernel likes.
        let mapping = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), whole(length), ProtFlags::empty(), flags)
        }
        .unwrap();
        let fenced = Self { mapping, length };
        let usable = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the range is inside the mapping just made.
        unsafe { rustix::mm::mprotect(fenced.at(GUARD).cast(), length + 2 * FENCE, usable) }.unwrap();
        for fence in fenced.fences() {
            // SAFETY: a fence is inside the part that may be written, and nobody knows of it yet.
            unsafe { fence.write_bytes(PATTERN, FENCE) };
        }
        fenced
    }

    /// As guest RAM at `start`.
    pub(super) fn region(&self, start: u64) -> GuestRegionMmap {
        let builder = MmapRegionBuilder::new(self.length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        // SAFETY: the range is mapped like this as long as `self` lives, which whoever uses the region sees to.
        let builder = unsafe { builder.with_raw_mmap_pointer(self.at(GUARD + FENCE)) };
        GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(start)).unwrap()
    }

    pub(super) fn assert_unharmed(&self) {
        for fence in self.fences() {
            for offset in 0..FENCE {
                // SAFETY: a fence is FENCE bytes of the mapping.
                let byte = unsafe { fence.add(offset).read_volatile() };
                assert_eq!(byte, PATTERN, "something was written outside of guest RAM");
            }
        }
    }

    fn fences(&self) -> [*mut u8; 2] {
        [self.at(GUARD), self.at(GUARD + FENCE + self.length)]
    }

    /// `offset` is inside the mapping.
    fn at(&self, offset: usize) -> *mut u8 {
        self.mapping.cast::<u8>().wrapping_add(offset)
    }
}

fn whole(length: usize) -> usize {
    length + 2 * (FENCE + GUARD)
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and whole; see the contract of the type.
        let unmapped = unsafe { rustix::mm::munmap(self.mapping, whole(self.length)) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "outside of guest RAM")]
    fn a_byte_past_the_end_is_noticed() {
        let fenced = Fenced::new(4096);
        // SAFETY: the first byte of the upper fence.
        unsafe { fenced.fences()[1].write_volatile(0) };
        fenced.assert_unharmed();
    }
}
