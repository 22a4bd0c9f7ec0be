//! The BARs of a passed function: their sizes, which pages are mapped into the guest, which are trapped. Pure.
//!
//! A page with any part of the MSI-X table or its pending bits is trapped, since the guest's table is ours
//! (`pci/msix.rs`); so is what the kernel cannot map, and a BAR smaller than a page: its page is another
//! device's too, so the guest sees a BAR of a whole page and reaches what there is of it through the kernel.

use std::ops::Range;

use super::device::Region;

const PAGE: u64 = 4096;

/// Bits of a base address register (PCI Local Bus 3.0 §6.2.5.1).
const IO: u32 = 1;
const TYPE: u32 = 3 << 1;
const TYPE_64BIT: u32 = 2 << 1;
const PREFETCHABLE: u32 = 1 << 3;

/// Where the MSI-X structures are (PCI Local Bus 3.0 §6.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MsixPlace {
    pub(super) vectors: u16,
    pub(super) table: (u8, u64),
    pub(super) pending: (u8, u64),
}

impl MsixPlace {
    /// The table's bytes if they are in `bar`.
    pub(super) fn table_in(&self, bar: u8) -> Option<Range<u64>> {
        let (at, start) = self.table;
        (at == bar).then(|| start..start + u64::from(self.vectors) * 16)
    }

    /// The pending bits' bytes if they are in `bar`: whole 64-bit words.
    pub(super) fn pending_in(&self, bar: u8) -> Option<Range<u64>> {
        let (at, start) = self.pending;
        (at == bar).then(|| start..start + u64::from(self.vectors).div_ceil(64) * 8)
    }
}

/// A memory BAR.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BarPlan {
    pub(super) index: u8,
    /// As the guest sees it.
    pub(super) size: u64,
    /// Bytes there really are.
    pub(super) region: u64,
    pub(super) is_64bit: bool,
    pub(super) prefetchable: bool,
    /// (Offset, bytes) of what is mapped into the guest.
    pub(super) mapped: Vec<(u64, u64)>,
}

/// The BARs behind the six `registers`. I/O ports are left out: the guest has no window for them.
pub(super) fn plan(registers: [u32; 6], regions: &[Region; 6], msix: Option<&MsixPlace>) -> Vec<BarPlan> {
    let mut bars = Vec::new();
    let mut upper_half = false;
    for (index, (register, region)) in (0u8..).zip(registers.into_iter().zip(regions)) {
        if std::mem::take(&mut upper_half) {
            continue;
        }
        let is_64bit = register & (IO | TYPE) == TYPE_64BIT;
        upper_half = is_64bit;
        if register & IO != 0 || region.size == 0 {
            continue;
        }
        let Some(size) = region.size.max(PAGE).checked_next_power_of_two() else { continue };
        let trapped: Vec<_> = msix
            .into_iter()
            .flat_map(|msix| [msix.table_in(index), msix.pending_in(index)])
            .flatten()
            .map(|range| range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE))
            .collect();
        let mapped = if region.size < PAGE { Vec::new() } else { pages(region, &trapped) };
        let prefetchable = register & PREFETCHABLE != 0;
        bars.push(BarPlan { index, size, region: region.size, is_64bit, prefetchable, mapped });
    }
    bars
}

/// The whole pages that can be mapped and are not to be trapped, ascending.
fn pages(region: &Region, trapped: &[Range<u64>]) -> Vec<(u64, u64)> {
    let mut areas: Vec<Range<u64>> = region
        .mappable
        .iter()
        .map(|&(offset, length)| {
            let end = offset.saturating_add(length).min(region.size) / PAGE * PAGE;
            offset.next_multiple_of(PAGE)..end
        })
        .collect();
    for hole in trapped {
        areas = areas
            .into_iter()
            .flat_map(|area| [area.start..area.end.min(hole.start), area.start.max(hole.end)..area.end])
            .filter(|area| area.start < area.end)
            .collect();
    }
    areas.retain(|area| area.start < area.end);
    areas.sort_by_key(|area| area.start);
    areas.into_iter().map(|area| (area.start, area.end - area.start)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(size: u64) -> Region {
        Region { size, mappable: if size >= PAGE { vec![(0, size)] } else { Vec::new() } }
    }

    fn only(index: usize, region: Region) -> [Region; 6] {
        let mut regions: [Region; 6] = Default::default();
        regions[index] = region;
        regions
    }

    #[test]
    fn a_disk_with_its_table_in_its_registers() {
        let msix = MsixPlace { vectors: 65, table: (0, 0x2000), pending: (0, 0x3000) };
        let bars = plan([TYPE_64BIT, 0, 0, 0, 0, 0], &only(0, region(0x4000)), Some(&msix));
        assert_eq!(bars.len(), 1);
        assert_eq!((bars[0].size, bars[0].is_64bit), (0x4000, true));
        assert_eq!(bars[0].mapped, [(0, 0x2000)]);
    }

    #[test]
    fn the_table_in_the_middle_leaves_both_sides() {
        let msix = MsixPlace { vectors: 4, table: (1, 0x4010), pending: (1, 0x4800) };
        let bars = plan([0; 6], &only(1, region(0x8000)), Some(&msix));
        assert_eq!(bars[0].mapped, [(0, 0x4000), (0x5000, 0x3000)]);
        assert_eq!(msix.table_in(1), Some(0x4010..0x4050));
        assert_eq!((msix.pending_in(1), msix.pending_in(0)), (Some(0x4800..0x4808), None));
    }

    #[test]
    fn only_what_the_kernel_can_map_is_mapped() {
        let sparse = Region { size: 0x8000, mappable: vec![(0x5000, 0x3000), (0, 0x1800)] };
        assert_eq!(plan([0; 6], &only(0, sparse), None)[0].mapped, [(0, 0x1000), (0x5000, 0x3000)]);
        let none = Region { size: 0x8000, mappable: Vec::new() };
        assert_eq!(plan([0; 6], &only(0, none), None)[0].mapped, []);
    }

    #[test]
    fn a_small_bar_is_a_page_and_trapped() {
        let small = Region { size: 0x100, mappable: vec![(0, 0x100)] };
        let bars = plan([PREFETCHABLE, 0, 0, 0, 0, 0], &only(0, small), None);
        assert_eq!((bars[0].size, bars[0].region, bars[0].prefetchable), (0x1000, 0x100, true));
        assert!(bars[0].mapped.is_empty());
    }

    #[test]
    fn ports_and_upper_halves_are_no_bars() {
        let mut regions: [Region; 6] = Default::default();
        regions[0] = region(0x1000);
        regions[1] = region(0x1000);
        regions[2] = region(0x20);
        let indices =
            |registers| plan(registers, &regions, None).iter().map(|bar| bar.index).collect::<Vec<_>>();
        assert_eq!(indices([TYPE_64BIT, 0, IO, 0, 0, 0]), [0]);
        assert_eq!(indices([0, 0, IO, 0, 0, 0]), [0, 1]);
    }
}
