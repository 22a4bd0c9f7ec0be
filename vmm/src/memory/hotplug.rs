//! RAM that is plugged after boot: a region of guest-physical addresses, reserved in this process once and for
//! all, whose blocks are memory while they are plugged.
//!
//! The guest and the devices reach the region in sections of 128 MiB, each one memory slot, there only while a
//! block of it is plugged. What is unplugged in such a section is backed by one block of scratch, the same for
//! all: whoever goes there against the rules reads and writes what nobody cares for, and no memory comes of
//! it. So whatever a guest does, the region costs what is plugged and one block. Outside of such sections
//! nothing answers: a load reads all ones.
//!
//! Addresses of the region stay mapped until the machine is gone, because a device may still hold a picture of
//! guest RAM from before an unplug; at worst it finds scratch.
//!
//! Lock order: the sections, then the list of RAM, then memory slots.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use kiai_devices::platform::GuestMemory;
use kiai_devices::platform::Mapper;
use kiai_devices::platform::PluggableRam;
use kiai_devices::virtio::mem::MemRegion;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use vm_memory::GuestMemoryMmap;

use super::MemoryError;
use super::Ram;
use super::Reservation;
use super::backing::Backing;
use super::backing::memfd;

/// Bytes of a section; a block is never larger.
pub(crate) const SECTION: u64 = 128 << 20;

/// A region in which blocks can be plugged.
pub(crate) struct HotplugRam {
    region: MemRegion,
    backing: Backing,
    scratch: File,
    /// Where the contents of blocks come from while a saved machine is restored: the region is in it from this offset.
    saved: Mutex<Option<(Arc<File>, u64)>>,
    /// Plugged blocks of each section.
    sections: Mutex<Vec<u64>>,
    /// What the guest booted with.
    boot: Arc<GuestMemoryMmap>,
    /// What devices see.
    memory: GuestMemory,
    mapper: Arc<dyn Mapper>,
    ram: Arc<Ram>,
    /// Last: everything above may point into it.
    reservation: Arc<Reservation>,
}

impl HotplugRam {
    /// Reserves `region`; nothing is plugged. `memory` holds what the guest boots with, and from here on changes
    /// with what is plugged.
    pub(crate) fn new(
        region: MemRegion,
        huge_pages: bool,
        memory: GuestMemory,
        mapper: Arc<dyn Mapper>,
        ram: Arc<Ram>,
    ) -> Result<Self, MemoryError> {
        let mib = u32::try_from(region.length >> 20).unwrap_or(u32::MAX);
        let error = |source| MemoryError::Backing { mib, huge_pages, source };
        let backing = Backing::new("kiai-hotplug", region.length, huge_pages).map_err(error)?;
        let scratch = memfd("kiai-scratch", region.block, huge_pages).map_err(error)?;
        if huge_pages {
            // The guest reaches it at any time.
            rustix::fs::fallocate(&scratch, FallocateFlags::empty(), 0, region.block)
                .map_err(|errno| error(errno.into()))?;
        }
        let reservation = Reservation::new(region.length)
            .map_err(|error| MemoryError::Map { mib, reason: error.to_string() })?;
        let sections = usize::try_from(region.length.div_ceil(SECTION)).expect("x86-64 only");
        let boot = vm_memory::GuestAddressSpace::memory(&memory);
        let boot = Arc::new(GuestMemoryMmap::clone(&boot));
        Ok(Self {
            region,
            backing,
            scratch,
            saved: Mutex::default(),
            sections: Mutex::new(vec![0; sections]),
            boot,
            memory,
            mapper,
            ram,
            reservation: Arc::new(reservation),
        })
    }

    /// The addresses it is at.
    pub(crate) fn reservation(&self) -> Arc<Reservation> {
        self.reservation.clone()
    }

    fn blocks(&self, offset: u64, length: u64) -> impl DoubleEndedIterator<Item = u64> + use<> {
        let block = self.region.block;
        (0..length / block).map(move |index| offset + index * block)
    }

    /// Section `index` as bytes of the region.
    fn section(&self, index: usize) -> Range<u64> {
        let start = index as u64 * SECTION;
        start..(start + SECTION).min(self.region.length)
    }

    /// The sections that `offset..offset + length` touches, and how many blocks of each.
    fn touched(&self, offset: u64, length: u64) -> Vec<(usize, u64)> {
        let end = offset + length;
        let first = usize::try_from(offset / SECTION).expect("x86-64 only");
        let last = usize::try_from((end - 1) / SECTION).expect("x86-64 only");
        let blocks = |index: usize| {
            let section = self.section(index);
            (section.end.min(end) - section.start.max(offset)) / self.region.block
        };
        (first..=last).map(|index| (index, blocks(index))).collect()
    }

    /// Backs blocks with memory of their own.
    fn back(&self, offset: u64, length: u64) -> io::Result<()> {
        match &*self.saved.lock() {
            Some((file, start)) => self.reservation.put_copy(offset, length, file, start + offset),
            None => self.backing.put(&self.reservation, offset, length),
        }
    }

    /// What is plugged from now on has the contents that `saved` has, or none.
    pub(crate) fn set_saved(&self, saved: Option<(Arc<File>, u64)>) {
        *self.saved.lock() = saved;
    }

    /// Where the region lies.
    pub(crate) fn region(&self) -> MemRegion {
        self.region
    }

    /// Backs blocks with scratch and gives back what they held.
    fn unback(&self, offset: u64, length: u64) -> io::Result<()> {
        for block in self.blocks(offset, length) {
            self.put_scratch(block)?;
        }
        self.backing.give_back(offset, length)
    }

    fn put_scratch(&self, block: u64) -> io::Result<()> {
        self.reservation.put_file(block, self.region.block, &self.scratch, 0)
    }

    /// Tells the list of RAM of blocks, one by one, as they go one by one.
    fn list(&self, offset: u64, length: u64) -> io::Result<()> {
        let block = self.region.block;
        for (count, at) in self.blocks(offset, length).enumerate() {
            let host = self.reservation.address() + at;
            if let Err(error) = self.ram.add(self.region.address + at, host, block) {
                self.unlist_all(offset, count as u64 * block);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Undoes [`HotplugRam::list`] when it went well a moment ago.
    fn unlist_all(&self, offset: u64, length: u64) {
        for at in self.blocks(offset, length).rev() {
            if let Err(error) = self.ram.remove(self.region.address + at, self.region.block) {
                tracing::error!("unplugged block {at:#x} stays in the list of RAM: {error}");
            }
        }
    }

    /// Takes blocks off the list; all of them or, on an error, none.
    fn unlist(&self, offset: u64, length: u64) -> io::Result<()> {
        let block = self.region.block;
        for (count, at) in self.blocks(offset, length).enumerate() {
            if let Err(error) = self.ram.remove(self.region.address + at, block) {
                if let Err(error) = self.list(offset, count as u64 * block) {
                    tracing::error!("blocks at {offset:#x} are lost to a device: {error}");
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes sections reachable that were not: scratch everywhere but in `plugged`, then a memory slot each.
    fn open(&self, sections: &[usize], plugged: &Range<u64>) -> io::Result<()> {
        for (count, &index) in sections.iter().enumerate() {
            let section = self.section(index);
            let opened = self
                .blocks(section.start, section.end - section.start)
                .filter(|at| !plugged.contains(at))
                .try_for_each(|at| self.put_scratch(at))
                .and_then(|()| {
                    let host = self.reservation.address() + section.start;
                    let length = section.end - section.start;
                    self.mapper.map(self.region.address + section.start, host, length, false)
                });
            if let Err(error) = opened {
                self.close(&sections[..count]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes sections out of the guest.
    fn close(&self, sections: &[usize]) {
        for &index in sections {
            let section = self.section(index);
            let guest = self.region.address + section.start;
            if let Err(error) = self.mapper.unmap(guest, section.end - section.start) {
                // It holds scratch only.
                tracing::error!("the memory slot at {guest:#x} stays: {error}");
            }
        }
    }

    /// Shows devices what the guest booted with and every open section; neighbours as one piece, as a buffer
    /// may lie across.
    fn show(&self, sections: &[u64]) -> io::Result<()> {
        let mut memory = GuestMemoryMmap::clone(&self.boot);
        let mut index = 0;
        while index < sections.len() {
            let open = sections[index..].iter().take_while(|&&blocks| blocks > 0).count();
            if open > 0 {
                let run = self.section(index).start..self.section(index + open - 1).end;
                let piece = self.backing.region(&self.reservation, self.region.address + run.start, &run)?;
                memory = memory.insert_region(Arc::new(piece)).map_err(io::Error::other)?;
            }
            index += open + 1;
        }
        self.memory.lock().map_err(|_| io::Error::other("a thread panicked"))?.replace(memory);
        Ok(())
    }

    /// The sections with their blocks of `touched` added, and those that were closed before.
    fn with(sections: &[u64], touched: &[(usize, u64)]) -> (Vec<u64>, Vec<usize>) {
        let mut after = sections.to_vec();
        let mut new = Vec::new();
        for &(index, blocks) in touched {
            if after[index] == 0 {
                new.push(index);
            }
            after[index] += blocks;
        }
        (after, new)
    }
}

impl PluggableRam for HotplugRam {
    fn plug(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut sections = self.sections.lock();
        let (after, new) = Self::with(&sections, &self.touched(offset, length));
        let undo = |error: io::Error| {
            // What is mapped in a closed section nobody reaches.
            if let Err(error) = self.unback(offset, length) {
                tracing::error!("block {offset:#x}+{length:#x} is not given back: {error}");
            }
            error
        };
        self.back(offset, length).map_err(undo)?;
        self.open(&new, &(offset..offset + length)).map_err(undo)?;
        self.show(&after)
            .and_then(|()| {
                self.list(offset, length).inspect_err(|_| {
                    if let Err(error) = self.show(&sections) {
                        tracing::error!("devices still see {offset:#x}+{length:#x}: {error}");
                    }
                })
            })
            .inspect_err(|_| self.close(&new))
            .map_err(undo)?;
        *sections = after;
        Ok(())
    }

    fn unplug(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut sections = self.sections.lock();
        self.unlist(offset, length)?;
        if let Err(error) = self.unback(offset, length) {
            // Some may hold scratch by now. They stay plugged, as memory.
            if let Err(error) = self.back(offset, length).and_then(|()| self.list(offset, length)) {
                tracing::error!("blocks at {offset:#x} are lost: {error}");
            }
            return Err(error);
        }
        let mut closed = Vec::new();
        for (index, blocks) in self.touched(offset, length) {
            sections[index] -= blocks;
            if sections[index] == 0 {
                closed.push(index);
            }
        }
        if !closed.is_empty() {
            if let Err(error) = self.show(&sections) {
                tracing::error!("devices still see {offset:#x}+{length:#x}: {error}");
            }
            self.close(&closed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::FileExt;
    use std::os::unix::fs::MetadataExt;

    use kiai_devices::platform::RamListener;
    use proptest::prelude::*;
    use vm_memory::Bytes;
    use vm_memory::GuestAddress;
    use vm_memory::GuestAddressSpace;
    use vm_memory::GuestMemoryBackend;
    use vm_memory::GuestMemoryRegion;

    use super::*;

    const BLOCK: u64 = 2 << 20;
    const REGION: MemRegion = MemRegion { address: 4 << 30, length: 2 * SECTION, block: BLOCK };

    /// Memory slots and a listener of RAM in one: both refuse when told to.
    #[derive(Default)]
    struct Follower {
        slots: Mutex<BTreeMap<u64, u64>>,
        ram: Mutex<BTreeMap<u64, u64>>,
        refuses: Mutex<Option<u64>>,
    }

    impl Follower {
        fn refuse(&self, guest: Option<u64>) {
            *self.refuses.lock() = guest;
        }

        fn check(&self, guest: u64) -> io::Result<()> {
            if *self.refuses.lock() == Some(guest) { Err(io::Error::other("no")) } else { Ok(()) }
        }
    }

    impl Mapper for Follower {
        fn map(&self, guest: u64, _: u64, length: u64, _: bool) -> io::Result<()> {
            self.check(guest)?;
            assert_eq!(self.slots.lock().insert(guest, length), None);
            Ok(())
        }

        fn unmap(&self, guest: u64, length: u64) -> io::Result<()> {
            assert_eq!(self.slots.lock().remove(&guest), Some(length));
            Ok(())
        }
    }

    impl RamListener for Follower {
        fn added(&self, guest: u64, _: u64, length: u64) -> io::Result<()> {
            self.check(guest)?;
            assert_eq!(self.ram.lock().insert(guest, length), None);
            Ok(())
        }

        fn removed(&self, guest: u64, length: u64) -> io::Result<()> {
            self.check(guest)?;
            assert_eq!(self.ram.lock().remove(&guest), Some(length));
            Ok(())
        }
    }

    struct Machine {
        follower: Arc<Follower>,
        memory: GuestMemory,
        hotplug: HotplugRam,
        _subscription: super::super::ram::Subscription,
    }

    impl Machine {
        fn new() -> Self {
            let boot = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
            let memory = GuestMemory::new(boot);
            let ram = Ram::new(&[]);
            let follower = Arc::new(Follower::default());
            let subscription = ram.subscribe(follower.clone()).unwrap();
            let mapper = follower.clone();
            let hotplug = HotplugRam::new(REGION, false, memory.clone(), mapper, ram).unwrap();
            Self { follower, memory, hotplug, _subscription: subscription }
        }

        /// Regions devices see behind the boot's, from the region's start in blocks.
        fn seen(&self) -> Vec<(u64, u64)> {
            let memory = self.memory.memory();
            let regions = memory.iter().filter(|region| region.start_addr().0 >= REGION.address);
            regions
                .map(|region| ((region.start_addr().0 - REGION.address) / BLOCK, region.len() / BLOCK))
                .collect()
        }

        /// Bytes of host memory behind the region, scratch included.
        fn costs(&self) -> u64 {
            const PRESENT: u64 = 1 << 63;
            const OF_A_FILE: u64 = 1 << 61;
            let mut entries = vec![0; usize::try_from(REGION.length / 4096 * 8).unwrap()];
            let pages = File::open("/proc/self/pagemap").unwrap();
            pages.read_exact_at(&mut entries, self.hotplug.reservation.address() / 4096 * 8).unwrap();
            let entries = entries.chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap()));
            let own = entries.filter(|entry| entry & (PRESENT | OF_A_FILE) == PRESENT).count() as u64 * 4096;
            own + self.hotplug.scratch.metadata().unwrap().blocks() * 512
        }

        /// A store of a device's, or of a guest's through a slot.
        fn store(&self, at: u64, value: u8) {
            self.memory.memory().write_obj(value, GuestAddress(REGION.address + at)).unwrap();
        }

        fn load(&self, at: u64) -> u8 {
            self.memory.memory().read_obj(GuestAddress(REGION.address + at)).unwrap()
        }

        fn fill(&self, offset: u64, length: u64) {
            for page in (offset..offset + length).step_by(4096) {
                self.store(page, 7);
            }
        }
    }

    #[test]
    fn what_is_plugged_is_seen_by_all_and_what_is_unplugged_by_none() {
        let machine = Machine::new();
        assert_eq!(machine.seen(), []);
        machine.hotplug.plug(0, 3 * BLOCK).unwrap();
        assert_eq!((machine.seen(), machine.costs()), (vec![(0, 64)], 0));
        assert_eq!(machine.follower.ram.lock().len(), 3);
        machine.hotplug.plug(SECTION - BLOCK, 2 * BLOCK).unwrap();
        assert_eq!(machine.seen(), [(0, 128)], "neighbours are one piece");
        assert_eq!(machine.follower.slots.lock().len(), 2);
        machine.memory.memory().write_obj(u64::MAX, GuestAddress(REGION.address + SECTION - 4)).unwrap();
        assert_eq!(machine.load(SECTION), 255);
        machine.hotplug.unplug(0, 3 * BLOCK).unwrap();
        machine.hotplug.unplug(SECTION - BLOCK, BLOCK).unwrap();
        assert_eq!(machine.seen(), [(64, 64)]);
        machine.hotplug.unplug(SECTION, BLOCK).unwrap();
        assert_eq!((machine.seen(), machine.costs()), (vec![], 0));
        assert!(machine.follower.slots.lock().is_empty() && machine.follower.ram.lock().is_empty());
    }

    #[test]
    fn unplugged_memory_goes_back_to_the_host_and_comes_back_as_zeroes() {
        let machine = Machine::new();
        machine.hotplug.plug(0, 4 * BLOCK).unwrap();
        machine.fill(0, 4 * BLOCK);
        assert_eq!(machine.costs(), 4 * BLOCK);
        machine.hotplug.unplug(BLOCK, 2 * BLOCK).unwrap();
        assert_eq!(machine.costs(), 2 * BLOCK);
        machine.hotplug.plug(BLOCK, 2 * BLOCK).unwrap();
        assert_eq!((machine.load(0), machine.load(BLOCK), machine.load(3 * BLOCK)), (7, 0, 7));
    }

    #[test]
    fn who_touches_what_is_unplugged_costs_one_block_and_hurts_nobody() {
        let machine = Machine::new();
        machine.hotplug.plug(0, BLOCK).unwrap();
        machine.fill(0, SECTION);
        assert_eq!(machine.costs(), 2 * BLOCK, "the block plugged and one of scratch");
        machine.fill(BLOCK, BLOCK);
        assert_eq!(machine.load(0), 7);
        let picture = machine.memory.memory();
        machine.hotplug.unplug(0, BLOCK).unwrap();
        // A device that still has an old picture of memory, in the middle of its work.
        picture.write_obj(9u8, GuestAddress(REGION.address)).unwrap();
        assert_eq!(machine.costs(), BLOCK);
        machine.hotplug.plug(0, BLOCK).unwrap();
        assert_eq!(machine.load(0), 0);
    }

    #[test]
    fn a_plug_that_fails_leaves_nothing_behind() {
        let machine = Machine::new();
        machine.hotplug.plug(0, BLOCK).unwrap();
        for refused in [REGION.address + SECTION, REGION.address + SECTION - BLOCK] {
            machine.follower.refuse(Some(refused));
            assert!(machine.hotplug.plug(SECTION - 2 * BLOCK, 4 * BLOCK).is_err());
            assert_eq!((machine.seen(), machine.follower.slots.lock().len()), (vec![(0, 64)], 1));
            assert_eq!(machine.follower.ram.lock().len(), 1);
        }
        machine.follower.refuse(None);
        machine.hotplug.plug(SECTION - 2 * BLOCK, 4 * BLOCK).unwrap();
        assert_eq!((machine.seen(), machine.follower.ram.lock().len()), (vec![(0, 128)], 5));
    }

    #[test]
    fn an_unplug_that_fails_leaves_all_as_it_was() {
        let machine = Machine::new();
        machine.hotplug.plug(0, 4 * BLOCK).unwrap();
        machine.fill(0, 4 * BLOCK);
        machine.follower.refuse(Some(REGION.address + 2 * BLOCK));
        assert!(machine.hotplug.unplug(0, 4 * BLOCK).is_err());
        assert_eq!((machine.costs(), machine.follower.ram.lock().len()), (4 * BLOCK, 4));
        assert_eq!((machine.load(0), machine.load(2 * BLOCK)), (7, 7));
        machine.follower.refuse(None);
        machine.hotplug.unplug(0, 4 * BLOCK).unwrap();
        assert_eq!(machine.costs(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever is plugged in whatever order, and however hard all that can be reached is written to: slots
        /// are where blocks are, the list has each block, and the host pays for the blocks and one of scratch.
        #[test]
        fn the_host_pays_for_what_is_plugged(changes in prop::collection::vec((0..128u64, 1..9u64), 1..24)) {
            let machine = Machine::new();
            let mut plugged = std::collections::BTreeSet::new();
            for (first, count) in changes {
                let range = first..(first + count).min(128);
                let (offset, length) = (range.start * BLOCK, (range.end - range.start) * BLOCK);
                if range.clone().all(|block| !plugged.contains(&block)) {
                    machine.hotplug.plug(offset, length).unwrap();
                    prop_assert!(range.clone().all(|block| machine.load(block * BLOCK) == 0));
                    plugged.extend(range);
                } else if range.clone().all(|block| plugged.contains(&block)) {
                    machine.hotplug.unplug(offset, length).unwrap();
                    plugged.retain(|block| !range.contains(block));
                }
                for (start, blocks) in machine.seen() {
                    (start..start + blocks).for_each(|block| machine.store(block * BLOCK, 7));
                }
                let sections: std::collections::BTreeSet<u64> =
                    plugged.iter().map(|block| REGION.address + block * BLOCK / SECTION * SECTION).collect();
                prop_assert!(machine.follower.slots.lock().keys().eq(&sections));
                let blocks: Vec<u64> = plugged.iter().map(|block| REGION.address + block * BLOCK).collect();
                prop_assert!(machine.follower.ram.lock().keys().eq(&blocks));
                prop_assert!(machine.costs() <= BLOCK * (plugged.len() as u64 + 1));
            }
        }
    }
}
