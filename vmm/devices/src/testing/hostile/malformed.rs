//! Chains no correct driver builds (virtio 1.2 §2.7), for every device to refuse.

use crate::testing::Descriptor;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Virtqueue;

/// A way to break the rules.
struct Malformed {
    name: &'static str,
    /// Puts it into a fresh queue; every descriptor has `flags` besides its own.
    offer: fn(&mut Virtqueue<'_>, u16),
}

const NEXT: u16 = Descriptor::NEXT;
const INDIRECT: u16 = Descriptor::INDIRECT;
/// RAM no test uses.
const PLAIN: u64 = 0x8_0000;
const HOLE: u64 = Machine::RAM[0].1;

const MALFORMED: &[Malformed] = &[
    Malformed { name: "a descriptor that follows itself", offer: |q, f| q.raw(0, (PLAIN, 16), f | NEXT, 0) },
    Malformed {
        name: "a loop",
        offer: |q, f| {
            q.write_descriptor(1, Descriptor { address: PLAIN, length: 16, flags: f | NEXT, next: 0 });
            q.raw(0, (PLAIN, 16), f | NEXT, 1);
        },
    },
    Malformed { name: "a next beyond the table", offer: |q, f| q.raw(0, (PLAIN, 16), f | NEXT, 0xffff) },
    Malformed { name: "a head beyond the table", offer: |q, _| q.make_available(q.size) },
    Malformed { name: "the largest head", offer: |q, _| q.make_available(0xffff) },
    Malformed { name: "a buffer in the hole", offer: |q, f| q.raw(0, (HOLE, 16), f, 0) },
    Malformed { name: "a buffer across the hole's start", offer: |q, f| q.raw(0, (HOLE - 8, 16), f, 0) },
    Malformed { name: "a buffer over registers", offer: |q, f| q.raw(0, (Machine::ECAM, 16), f, 0) },
    Malformed { name: "a buffer that wraps around", offer: |q, f| q.raw(0, (u64::MAX - 7, 16), f, 0) },
    Malformed { name: "the longest buffer", offer: |q, f| q.raw(0, (PLAIN, u32::MAX), f, 0) },
    Malformed {
        name: "over 4 GiB in two buffers",
        offer: |q, f| {
            q.write_descriptor(1, Descriptor { address: 0, length: u32::MAX, flags: f, next: 0 });
            q.raw(0, (PLAIN, 16), f | NEXT, 1);
        },
    },
    Malformed {
        name: "an indirect table in an indirect table",
        offer: |q, f| {
            q.machine
                .store(PLAIN, &Descriptor { address: PLAIN, length: 16, flags: INDIRECT, next: 0 }.bytes());
            q.raw(0, (PLAIN, 16), f | INDIRECT, 0);
        },
    },
    Malformed { name: "an indirect table of no length", offer: |q, f| q.raw(0, (PLAIN, 0), f | INDIRECT, 0) },
    Malformed { name: "an indirect table and a half", offer: |q, f| q.raw(0, (PLAIN, 24), f | INDIRECT, 0) },
    Malformed { name: "an indirect table nowhere", offer: |q, f| q.raw(0, (HOLE, 16), f | INDIRECT, 0) },
    Malformed {
        name: "the longest indirect table",
        offer: |q, f| q.raw(0, (PLAIN, 0xffff_fff0), f | INDIRECT, 0),
    },
    Malformed {
        name: "an indirect table of 60000 good descriptors",
        offer: |q, f| {
            for i in 0..60_000u16 {
                let flags = if i == 59_999 { f } else { f | NEXT };
                let entry = Descriptor { address: PLAIN, length: 1, flags, next: i.wrapping_add(1) };
                q.machine.store(HUGE + 16 * u64::from(i), &entry.bytes());
            }
            q.raw(0, (HUGE, 60_000 * 16), f | INDIRECT, 0);
        },
    },
    Malformed {
        name: "an available index that jumps",
        offer: |q, f| {
            q.raw(0, (PLAIN, 0), f, 0);
            q.set_available_index(q.size + 2);
        },
    },
    Malformed { name: "an available index that goes back", offer: |q, _| q.set_available_index(0xffff) },
];

/// The second piece of RAM has room for a table of a million bytes.
const HUGE: u64 = Machine::RAM[1].0;

/// Offers each malformed chain to queue `index` of the device in `slot` and checks that the device asks for a
/// reset, and that after it `works` does. The descriptors have `flags` (0, or [`Descriptor::WRITE`] for a
/// queue whose buffers the device writes).
pub fn refuses_malformed_chains(
    machine: &Machine,
    slot: u8,
    index: u16,
    flags: u16,
    works: impl Fn(&Machine, u8),
) {
    for malformed in MALFORMED {
        println!("{}", malformed.name);
        let driver = Driver::negotiate(machine, slot, 0);
        let mut queues = driver.queues();
        driver.ready();
        let queue = &mut queues[usize::from(index)];
        (malformed.offer)(queue, flags);
        queue.notify();
        driver.wait_needs_reset();
        driver.reset();
        works(machine, slot);
    }
}

impl Virtqueue<'_> {
    /// Writes descriptor `head` and makes it available.
    fn raw(&mut self, head: u16, (address, length): (u64, u32), flags: u16, next: u16) {
        self.write_descriptor(head, Descriptor { address, length, flags, next });
        self.make_available(head);
    }
}
