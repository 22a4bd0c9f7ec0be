//! The driver's half of queues it means no good with.

use super::driver::BAR;
use super::driver::Hostile;
use super::operation::Area;
use super::operation::Part;
use super::operation::Place;
use crate::testing::Descriptor;
use crate::testing::Machine;

/// Where each queue's rings are: so far apart, and their areas in it.
pub(super) const RINGS: u64 = 1 << 20;
pub(super) const APART: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x6000;
const USED: u64 = 0x8000;
/// Descriptors there is room for.
pub(super) const MOST_DESCRIPTORS: u16 = 1024;
/// Buffers and indirect tables are in the second piece of RAM.
const BUFFERS: u64 = Machine::RAM[1].0;
/// Room of a buffer with its table.
const BUFFER: u64 = 0x4000;
const TABLE: u64 = 0x3000;

/// The driver's side of a queue.
#[derive(Clone, Copy)]
pub(super) struct Rings {
    pub(super) most: u16,
    pub(super) size: u16,
    pub(super) base: u64,
    /// What the available index says.
    pub(super) offered: u16,
    /// The next descriptor to use.
    pub(super) next: u16,
}

impl Hostile<'_, '_> {
    pub(super) fn select(&self, index: usize) {
        self.function.write_common(0x16, 2, index as u64);
    }

    pub(super) fn set_up(&mut self, index: usize, size: Option<u16>, moved: Option<(Area, Place)>) {
        let base = self.queues[index].base;
        self.select(index);
        self.function.write_common(0x18, 2, size.unwrap_or(self.queues[index].most).into());
        let size = u16::try_from(self.function.read_common(0x18, 2)).unwrap().clamp(1, MOST_DESCRIPTORS);
        self.function.write_common(0x1a, 2, index as u64 + 1);
        let moved = moved.map(|(area, place)| (area as usize, self.place(place)));
        for (area, offset) in [0, AVAILABLE, USED].into_iter().enumerate() {
            let elsewhere = moved.filter(|(which, _)| *which == area);
            let address = elsewhere.map_or(base + offset, |(_, address)| address);
            let register = 0x20 + 8 * area as u64;
            self.function.write_common(register, 4, address & 0xffff_ffff);
            self.function.write_common(register + 4, 4, address >> 32);
        }
        self.function.write_common(0x1c, 2, 1);
        // Indices start at 0; the used event asks for the first interrupt.
        self.fill(base + AVAILABLE, &[0; 4]);
        self.fill(base + USED, &[0; 4]);
        self.queues[index] = Rings { size, offered: 0, next: 0, ..self.queues[index] };
    }

    pub(super) fn describe(&self, queue: usize, index: u16, descriptor: Descriptor) {
        let at = u64::from(index % MOST_DESCRIPTORS);
        self.fill(self.queues[queue].base + 16 * at, &descriptor.bytes());
    }

    pub(super) fn offer(&mut self, queue: usize, head: u16) {
        let Rings { base, size, offered, .. } = self.queues[queue];
        self.fill(base + AVAILABLE + 4 + 2 * u64::from(offered % size), &head.to_le_bytes());
        self.jump(queue, offered.wrapping_add(1));
    }

    pub(super) fn jump(&mut self, queue: usize, index: u16) {
        self.queues[queue].offered = index;
        self.fill(self.queues[queue].base + AVAILABLE + 2, &index.to_le_bytes());
    }

    pub(super) fn request(&mut self, queue: usize, parts: &[Part], indirect: bool) {
        let Rings { size, next: first, .. } = self.queues[queue];
        let parts = &parts[..parts.len().min(usize::from(size)).min(64)];
        let buffer = BUFFERS + BUFFER * (self.next_buffer % 512);
        self.next_buffer += 1;
        let mut room = buffer;
        for (i, part) in (0u16..).zip(parts) {
            let content =
                &part.content[..part.content.len().min(usize::try_from(buffer + TABLE - room).unwrap())];
            let address = part.elsewhere.map_or(room, |place| self.place(place));
            let length = part.length.map_or(content.len() as u32, |length| length.bytes());
            self.fill(address, content);
            if part.elsewhere.is_none() {
                room += content.len() as u64;
            }
            let last = usize::from(i) + 1 == parts.len();
            let next = if indirect { i + 1 } else { (first + i + 1) % size };
            let flags =
                if last { 0 } else { Descriptor::NEXT } | if part.writable { Descriptor::WRITE } else { 0 };
            let descriptor = Descriptor { address, length, flags, next };
            if indirect {
                self.fill(buffer + TABLE + 16 * u64::from(i), &descriptor.bytes());
            } else {
                self.describe(queue, (first + i) % size, descriptor);
            }
        }
        let used = if indirect {
            let length = 16 * u32::try_from(parts.len()).unwrap();
            let table = Descriptor { address: buffer + TABLE, length, flags: Descriptor::INDIRECT, next: 0 };
            self.describe(queue, first, table);
            1
        } else {
            u16::try_from(parts.len()).unwrap()
        };
        self.queues[queue].next = (first + used) % size;
        self.offer(queue, first);
        self.notify(queue);
    }

    pub(super) fn notify(&self, queue: usize) {
        let offset = self.function.notify - self.home + 4 * queue as u64;
        self.store(self.function.bar(BAR).wrapping_add(offset), 2, queue as u64);
    }
}
