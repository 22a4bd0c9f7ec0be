//! What a driver may do to the segment, right and wrong, and what comes of it.

use std::sync::Arc;

use proptest::prelude::*;
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::eventfd::EventFd;

use super::InsertError;
use super::Windows;
use crate::pci::function::Bar;
use crate::pci::function::Region;
use crate::pci::segment::PciSegment;
use crate::platform::MsiMessage;
use crate::testing::FakePlatform;
use crate::testing::Machine;
use crate::testing::Plain;

const MEMORY_ON: u64 = 2;

/// One 64-bit BAR.
fn of_size(size: u64) -> Arc<Plain> {
    Plain::new(vec![bar(0, size, Vec::new())])
}

fn bar(index: u8, size: u64, regions: Vec<Region>) -> Bar {
    Bar { index, size, is_64bit: true, prefetchable: false, regions }
}

fn bar_address(machine: &Machine, slot: u8, index: u8) -> u64 {
    let register = 0x10 + 4 * u16::from(index);
    let low = machine.read_config(slot, register, 4) & !0xf;
    machine.read_config(slot, register + 4, 4) << 32 | low
}

fn move_bar(machine: &Machine, slot: u8, index: u8, address: u64) {
    let register = 0x10 + 4 * u16::from(index);
    machine.write_config(slot, register, 4, address & 0xffff_ffff);
    machine.write_config(slot, register + 4, 4, address >> 32);
}

#[test]
fn a_scan_finds_the_bridge_and_the_functions_and_nothing_else() {
    let machine = Machine::new();
    assert_eq!(machine.insert(of_size(0x1000)), 1);
    for slot in 0..32 {
        let id = machine.read_config(slot, 0, 4);
        let expected = match slot {
            0 => 0x0008_1b36,
            1 => 0x0002_0001,
            _ => 0xffff_ffff,
        };
        assert_eq!(id, expected, "slot {slot}");
    }
    assert_eq!(machine.read_config(0, 0x08, 4) >> 8, 0x06_00_00, "host bridge");
    // Function 1 of a taken slot is as absent as an empty slot.
    assert_eq!(machine.read(Machine::ECAM + 0x8000 + 0x1000, 4), 0xffff_ffff);
    // Misaligned and 8-byte accesses are none.
    assert_eq!(machine.read(Machine::ECAM + 2, 4), 0xffff_ffff);
    assert_eq!(machine.read(Machine::ECAM, 8), u64::MAX);
}

#[test]
fn a_bar_answers_while_memory_space_is_enabled() {
    let machine = Machine::new();
    let slot = machine.insert(of_size(0x4000));
    let address = bar_address(&machine, slot, 0);
    assert!(Machine::MMIO64.contains(&address) && address.is_multiple_of(0x4000));
    assert_eq!(machine.read(address, 1), 0xff);
    machine.write_config(slot, 4, 2, MEMORY_ON);
    assert_eq!(machine.read(address, 1), 0x40);
    machine.write_config(slot, 4, 2, 0);
    assert_eq!(machine.read(address, 1), 0xff);
}

#[test]
fn doorbells_and_mappings_follow_their_bar() {
    let machine = Machine::new();
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let regions = vec![
        Region::Doorbell { offset: 0x10, event },
        Region::Mapped { offset: 0x1000, length: 0x1000, host_address: 0x7000, read_only: true },
    ];
    let slot = machine.insert(Plain::new(vec![bar(2, 0x2000, regions)]));
    let first = bar_address(&machine, slot, 2);
    let at = |machine: &Machine| {
        let mappings: Vec<_> = machine.platform.mappings().iter().map(|m| m.guest_address).collect();
        (machine.platform.doorbells(), mappings)
    };
    assert_eq!(at(&machine), (vec![], vec![]));
    machine.write_config(slot, 4, 2, MEMORY_ON);
    assert_eq!(at(&machine), (vec![first + 0x10], vec![first + 0x1000]));
    let second = Machine::MMIO64.end - 0x2000;
    move_bar(&machine, slot, 2, second);
    assert_eq!(at(&machine), (vec![second + 0x10], vec![second + 0x1000]));
    machine.segment.remove(slot);
    assert_eq!(at(&machine), (vec![], vec![]));
    assert_eq!(machine.read(second, 1), 0xff);
}

#[test]
fn a_refused_region_leaves_the_bar_off_the_bus_until_it_is_placed_again() {
    let machine = Machine::new();
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let regions = vec![Region::Doorbell { offset: 0, event }];
    let slot = machine.insert(Plain::new(vec![bar(0, 0x1000, regions)]));
    let address = bar_address(&machine, slot, 0);
    machine.platform.refuse(true);
    machine.write_config(slot, 4, 2, MEMORY_ON);
    assert_eq!(machine.read(address, 1), 0xff);
    machine.platform.refuse(false);
    machine.write_config(slot, 4, 2, 0);
    machine.write_config(slot, 4, 2, MEMORY_ON);
    assert_eq!(machine.read(address, 1), 0x40);
}

#[test]
fn a_bar_over_ram_ecam_or_another_bar_answers_nowhere() {
    let machine = Machine::new();
    let first = machine.insert(Plain::new(vec![bar(0, 0x1000, Vec::new())]));
    let second = machine.insert(Plain::new(vec![bar(2, 0x1000, Vec::new())]));
    for slot in [first, second] {
        machine.write_config(slot, 4, 2, MEMORY_ON);
    }
    let home = bar_address(&machine, second, 2);
    let other = bar_address(&machine, first, 0);
    for address in [0, 0x10_0000, Machine::ECAM, other, 0xffff_f000, Machine::MMIO64.end, !0xfff] {
        let before = machine.read(address, 1);
        move_bar(&machine, second, 2, address);
        assert_eq!(bar_address(&machine, second, 2), address, "the register takes any address");
        assert_eq!(machine.read(address, 1), before, "at {address:#x}");
        assert_eq!(machine.read(home, 1), 0xff, "it has left");
        move_bar(&machine, second, 2, home);
        assert_eq!(machine.read(home, 1), 0x42, "and works where it may be");
    }
    assert_eq!(machine.read(other, 1), 0x40);
}

#[test]
fn sizes_are_aligned_and_gaps_are_filled() {
    let machine = Machine::new();
    let sizes = [0x1000, 0x10_0000, 0x2000, 0x4_0000_0000];
    let slots: Vec<_> = sizes.iter().map(|&size| machine.insert(of_size(size))).collect();
    let mut ranges: Vec<_> =
        slots.iter().zip(sizes).map(|(&slot, size)| (bar_address(&machine, slot, 0), size)).collect();
    assert!(ranges.iter().all(|(start, size)| start.is_multiple_of(*size)));
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{ranges:x?}");
    let gap = bar_address(&machine, slots[1], 0);
    machine.segment.remove(slots[1]);
    let again = machine.insert(of_size(0x10_0000));
    assert_eq!((again, bar_address(&machine, again, 0)), (slots[1], gap));
}

#[test]
fn a_new_function_stays_clear_of_a_bar_the_driver_moved() {
    let machine = Machine::new();
    let first = machine.insert(of_size(0x1000));
    machine.write_config(first, 4, 2, MEMORY_ON);
    let start = bar_address(&machine, first, 0);
    move_bar(&machine, first, 0, start + 0x1000);
    let second = machine.insert(of_size(0x1000));
    let third = machine.insert(of_size(0x1000));
    assert_eq!(bar_address(&machine, second, 0), start, "free again");
    assert_eq!(bar_address(&machine, third, 0), start + 0x2000);
}

#[test]
fn a_full_bus_and_a_full_window_are_errors_that_change_nothing() {
    let machine = Machine::new();
    let size = 1 << 40;
    let refused = machine.segment.insert(of_size(size));
    assert_eq!(refused, Err(InsertError::NoRoom { size }));
    for slot in 1..32 {
        assert_eq!(machine.insert(of_size(0x1000)), slot);
    }
    assert_eq!(machine.segment.insert(of_size(0x1000)), Err(InsertError::NoSlot));
}

#[test]
fn a_removed_function_is_told_once_it_cannot_be_reached() {
    let machine = Machine::new();
    let function = of_size(0x1000);
    let slot = machine.insert(function.clone());
    machine.write_config(slot, 4, 2, MEMORY_ON);
    let address = bar_address(&machine, slot, 0);
    machine.segment.remove(slot);
    assert!(function.is_removed());
    assert_eq!((machine.read_config(slot, 0, 4), machine.read(address, 1)), (0xffff_ffff, 0xff));
    assert_eq!(Arc::strong_count(&function), 1, "nothing keeps it");
    machine.segment.remove(slot);
    machine.segment.remove(0);
    assert_eq!(machine.read_config(0, 0, 2), 0x1b36, "the bridge stays");
}

#[test]
fn a_machine_that_ends_leaves_nothing_behind() {
    let platform = FakePlatform::new();
    let mmio = Arc::new(crate::bus::Bus::new("MMIO"));
    let windows = Windows { ecam: 0, mmio32: Machine::MMIO32, mmio64: Machine::MMIO64 };
    let segment = PciSegment::new(mmio.clone(), platform.platform(), windows).unwrap();
    let function = of_size(0x1000);
    segment.insert(function.clone()).unwrap();
    drop(segment);
    drop(mmio);
    assert_eq!(Arc::strong_count(&function), 1);
}

proptest! {
    /// Whatever the driver writes to the configuration spaces, BARs that answer are inside the windows and
    /// apart (the fake platform panics when doorbells collide), and the functions can be put right again.
    #[test]
    fn any_configuration_writes_are_survived(
        writes in prop::collection::vec((0u8..4, 0u16..0x100, 0usize..3, any::<u64>()), 0..200),
    ) {
        let machine = Machine::new();
        let mut homes = Vec::new();
        for _ in 0..2 {
            let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            let doorbell = vec![Region::Doorbell { offset: 8, event }];
            let slot = machine.insert(Plain::new(vec![bar(0, 0x1000, doorbell), bar(2, 0x2000, Vec::new())]));
            homes.push((slot, bar_address(&machine, slot, 0), bar_address(&machine, slot, 2)));
        }
        for (slot, offset, width, value) in writes {
            let width = 1 << width;
            // Half of the values are addresses that may be valid, so that BARs meet.
            let value = if value & 1 == 0 { value } else { 0x40_0000_0000 + (value & 0x7000) };
            machine.write_config(slot, offset & !(width as u16 - 1), width, value);
        }
        for address in machine.platform.doorbells() {
            prop_assert!(Machine::MMIO64.contains(&address) || Machine::MMIO32.contains(&address));
        }
        for &(slot, _, _) in &homes {
            machine.write_config(slot, 4, 2, 0);
        }
        for &(slot, first, second) in &homes {
            move_bar(&machine, slot, 0, first);
            move_bar(&machine, slot, 2, second);
            machine.write_config(slot, 4, 2, MEMORY_ON);
            prop_assert_eq!((machine.read(first, 1), machine.read(second, 1)), (0x40, 0x42));
        }
        for (slot, _, _) in homes {
            machine.segment.remove(slot);
        }
        prop_assert!(machine.platform.doorbells().is_empty());
        prop_assert!(!machine.platform.take(MsiMessage::default()));
    }
}
