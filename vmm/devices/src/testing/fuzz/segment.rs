//! Configuration space of several functions, plugged and unplugged, their BARs moved over RAM, over registers
//! and over each other.

use std::ops::Range;
use std::sync::Arc;

use arbitrary::Arbitrary;
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::eventfd::EventFd;

use super::parse;
use crate::pci::function::Bar;
use crate::pci::function::Region;
use crate::testing::Machine;
use crate::testing::Plain;

const COMMAND: u16 = 4;
const BAR0: u16 = 0x10;
/// Operations of one run.
const MOST: usize = 200;
/// Slots the driver looks at.
const SLOTS: u8 = 6;

#[derive(Debug, Arbitrary)]
enum Operation {
    Plug(Kind),
    Unplug(u8),
    Write {
        slot: u8,
        offset: u16,
        width: u8,
        value: Value,
    },
    Read {
        slot: u8,
        offset: u16,
        width: u8,
    },
    Decode {
        slot: u8,
        on: bool,
    },
    MoveBar {
        slot: u8,
        bar: u8,
        to: Value,
    },
    /// The host refuses doorbells and mappings, or does not any more.
    Refuse(bool),
    Load {
        at: Value,
        width: u8,
    },
    Store {
        at: Value,
        width: u8,
    },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Kind {
    /// A 64-bit BAR with a doorbell, another with a mapped page.
    Wide,
    /// The same in 32 bits.
    Narrow,
    /// A BAR of 1 GiB.
    Large,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Value {
    /// A page of the window for 64 bits, where the functions meet.
    High(u8),
    /// Of that for 32 bits.
    Low(u8),
    /// The last pages of a window.
    End {
        high: bool,
        pages: u8,
    },
    Ecam(u16),
    Ram(u32),
    Any(u64),
}

impl Value {
    fn number(self) -> u64 {
        let end = |window: Range<u64>, pages: u8| window.end - 4096 * u64::from(pages);
        match self {
            Self::High(page) => Machine::MMIO64.start + 4096 * u64::from(page),
            Self::Low(page) => Machine::MMIO32.start + 4096 * u64::from(page),
            Self::End { high: true, pages } => end(Machine::MMIO64, pages),
            Self::End { high: false, pages } => end(Machine::MMIO32, pages),
            Self::Ecam(offset) => Machine::ECAM + u64::from(offset),
            Self::Ram(address) => address.into(),
            Self::Any(value) => value,
        }
    }
}

/// Runs operations. Doorbells and mappings are in the windows and apart (the platform sees to the latter), and
/// once all functions are told to be apart, all of them answer.
pub fn segment(bytes: &[u8]) {
    let Some(operations) = parse::<Vec<Operation>>(bytes) else { return };
    let machine = Machine::new();
    for kind in [Kind::Wide, Kind::Narrow] {
        machine.insert(function(kind));
    }
    for operation in operations.iter().take(MOST) {
        perform(&machine, operation);
        assert_inside(&machine);
    }
    machine.platform.refuse(false);
    put_right(&machine);
    for slot in 1..32 {
        machine.segment.remove(slot);
    }
    assert!(machine.platform.doorbells().is_empty() && machine.platform.mappings().is_empty());
    assert_eq!(machine.read_config(0, 0, 4), 0x0008_1b36, "the host bridge is what it was");
}

fn function(kind: Kind) -> Arc<Plain> {
    let bar = |index, size, is_64bit, regions| Bar { index, size, is_64bit, prefetchable: false, regions };
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let doorbell = vec![Region::Doorbell { offset: 0x10, event }];
    let page = vec![Region::Mapped { offset: 0x1000, length: 0x1000, host_address: 0x7000, read_only: true }];
    Plain::new(match kind {
        Kind::Wide => vec![bar(0, 0x1000, true, doorbell), bar(2, 0x2000, true, page)],
        Kind::Narrow => vec![bar(0, 0x1000, false, doorbell), bar(1, 0x2000, false, page)],
        Kind::Large => vec![bar(4, 1 << 30, true, doorbell)],
    })
}

fn perform(machine: &Machine, operation: &Operation) {
    let slot = |slot: u8| slot % SLOTS;
    match *operation {
        Operation::Plug(kind) => {
            // A full bus refuses.
            let _ = machine.segment.insert(function(kind));
        }
        Operation::Unplug(number) => machine.segment.remove(slot(number)),
        Operation::Write { slot: number, offset, width, value } => {
            machine.write_config(slot(number), offset % 4096, bytes(width), value.number());
        }
        Operation::Read { slot: number, offset, width } => {
            machine.read_config(slot(number), offset % 4096, bytes(width));
        }
        Operation::Decode { slot: number, on } => {
            machine.write_config(slot(number), COMMAND, 2, if on { 2 } else { 0 });
        }
        Operation::MoveBar { slot: number, bar, to } => {
            let register = BAR0 + 4 * u16::from(bar % 6);
            machine.write_config(slot(number), register, 4, to.number() & 0xffff_ffff);
            if bar % 2 == 0 {
                machine.write_config(slot(number), register + 4, 4, to.number() >> 32);
            }
        }
        Operation::Refuse(refuse) => machine.platform.refuse(refuse),
        Operation::Load { at, width } => {
            machine.read(at.number(), bytes(width));
        }
        Operation::Store { at, width } => machine.write(at.number(), bytes(width), u64::MAX),
    }
}

fn bytes(width: u8) -> usize {
    1 << (width % 4)
}

fn assert_inside(machine: &Machine) {
    let inside = |at: u64| Machine::MMIO32.contains(&at) || Machine::MMIO64.contains(&at);
    assert!(machine.platform.doorbells().into_iter().all(inside), "{:x?}", machine.platform.doorbells());
    for mapping in machine.platform.mappings() {
        let last = mapping.guest_address + (mapping.length - 1);
        assert!(inside(mapping.guest_address) && inside(last), "{mapping:x?}");
    }
}

/// Turns decoding off everywhere, gives each BAR a place of its own, turns it on again: each answers there.
fn put_right(machine: &Machine) {
    let present: Vec<u8> = (1..32).filter(|&slot| machine.read_config(slot, 0, 4) == 0x0002_0001).collect();
    for &slot in &present {
        machine.write_config(slot, COMMAND, 2, 0);
    }
    let (mut high, mut low) = (Machine::MMIO64.start, Machine::MMIO32.start);
    let mut expected = Vec::new();
    for &slot in &present {
        let mut bars = 0..6u8;
        while let Some(bar) = bars.next() {
            let register = BAR0 + 4 * u16::from(bar);
            machine.write_config(slot, register, 4, 0xffff_ffff);
            let sized = machine.read_config(slot, register, 4);
            if sized & !0xf == 0 {
                continue;
            }
            let wide = sized & 4 != 0;
            let size = (!(sized & !0xf) & 0xffff_ffff) + 1;
            let next = if wide { &mut high } else { &mut low };
            let address = next.next_multiple_of(size);
            *next = address + size;
            machine.write_config(slot, register, 4, address & 0xffff_ffff);
            if wide {
                machine.write_config(slot, register + 4, 4, address >> 32);
                // Its other half.
                bars.next();
            }
            expected.push((address, 0x40 + u64::from(bar)));
        }
    }
    for &slot in &present {
        machine.write_config(slot, COMMAND, 2, 2);
    }
    for (address, answer) in expected {
        assert_eq!(machine.read(address, 1), answer, "at {address:#x}");
    }
}
