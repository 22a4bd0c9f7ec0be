//! Carries out [`Operation`]s.

use super::operation::Operation;
use super::operation::Place;
use super::operation::Register;
use super::operation::Start;
use super::operation::Value;
use super::operation::Width;
use super::rings::APART;
use super::rings::MOST_DESCRIPTORS;
use super::rings::RINGS;
use super::rings::Rings;
use crate::testing::Descriptor;
use crate::testing::Function;
use crate::testing::Machine;
use crate::testing::Virtqueue;
use crate::virtio::spec::feature;
use crate::virtio::spec::status;

const COMMAND: u16 = 0x04;
pub(super) const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
/// Queues it knows, at most.
const MOST_QUEUES: u16 = 16;

/// The driver of one function, and another guest's device on the same bus.
pub struct Hostile<'m, 'n> {
    pub(super) function: Function<'m>,
    /// The BAR as the firmware placed it.
    pub(super) home: u64,
    pub(super) queues: Vec<Rings>,
    neighbour: &'n mut Virtqueue<'m>,
    neighbours_bar: u64,
    buffer: u64,
    pub(super) next_buffer: u64,
}

impl<'m, 'n> Hostile<'m, 'n> {
    /// Drives the function in `slot`. `neighbour` is a live queue of an entropy device with `buffer` in its
    /// RAM; its registers are at `neighbours_bar`.
    pub fn new(
        machine: &'m Machine,
        slot: u8,
        neighbour: &'n mut Virtqueue<'m>,
        neighbours_bar: u64,
        buffer: u64,
    ) -> Self {
        let function = Function::probe(machine, slot);
        let home = function.bar(BAR);
        let count = u16::try_from(function.read_common(0x12, 2)).unwrap().min(MOST_QUEUES);
        let queue = |index: u16| {
            function.write_common(0x16, 2, u64::from(index));
            let most = u16::try_from(function.read_common(0x18, 2)).unwrap().min(MOST_DESCRIPTORS);
            let base = RINGS + APART * u64::from(index);
            Rings { most, size: most, base, offered: 0, next: 0 }
        };
        let queues = (0..count).map(queue).collect();
        Self { function, home, queues, neighbour, neighbours_bar, buffer, next_buffer: 0 }
    }

    /// Goes as far as `start` by the rules.
    pub fn begin(&mut self, start: Start) {
        if !matches!(start, Start::Fresh) {
            self.negotiate(u64::MAX);
        }
        if matches!(start, Start::Ready) {
            (0..self.queues.len()).for_each(|index| self.set_up(index, None, None));
            self.ready();
        }
    }

    /// Does it.
    pub fn perform(&mut self, operation: &Operation) {
        match *operation {
            Operation::Load(register, width) => {
                self.load(self.address(register), width.bytes());
            }
            Operation::Store(register, width, value) => {
                self.store(self.address(register), width.bytes(), self.value(value));
            }
            Operation::LoadConfig(offset, width) => {
                self.function.read_config(aligned(offset, width), width.bytes());
            }
            Operation::StoreConfig(offset, width, value) => {
                self.function.write_config(aligned(offset, width), width.bytes(), self.value(value));
            }
            Operation::Window { offset, width, value } => self.through_the_window(offset, width, value),
            Operation::MoveBar(place) => self.function.move_bar(BAR, self.place(place)),
            Operation::Decode(on) => self.function.write_config(COMMAND, 2, if on { 6 } else { 0 }),
            Operation::Reset => self.function.set_status(0),
            Operation::Negotiate(features) => self.negotiate(features),
            Operation::SetUp { queue, size, moved } => {
                if let Some(index) = self.index(queue) {
                    self.set_up(index, size, moved);
                }
            }
            Operation::Ready => self.ready(),
            Operation::Describe { queue, index, at, length, flags, next } => {
                if let Some(queue) = self.index(queue) {
                    let address = self.place(at);
                    let flags = u16::from(flags);
                    let descriptor = Descriptor { address, length: length.bytes(), flags, next };
                    self.describe(queue, index, descriptor);
                }
            }
            Operation::Offer { queue, head } => {
                if let Some(queue) = self.index(queue) {
                    self.offer(queue, head);
                }
            }
            Operation::Jump { queue, index } => {
                if let Some(queue) = self.index(queue) {
                    self.jump(queue, index);
                }
            }
            Operation::Request { queue, ref parts, indirect } => {
                if let Some(queue) = self.index(queue) {
                    self.request(queue, parts, indirect);
                }
            }
            Operation::Notify(queue) => {
                if let Some(queue) = self.index(queue) {
                    self.notify(queue);
                }
            }
            Operation::Fill(place, bytes) => self.fill(self.place(place), &bytes),
            Operation::Neighbour => self.neighbour_works(),
        }
    }

    /// The BAR back where it was, memory space on, the device reset: what a new driver would find.
    pub fn recover(&mut self) {
        self.function.move_bar(BAR, self.home);
        self.function.write_config(COMMAND, 2, 6);
        self.function.set_status(0);
        assert_eq!(self.function.status(), 0, "a reset is complete when status reads 0");
        assert_eq!(self.function.read_common(0x10, 2), 0xffff, "a reset takes the vectors away");
        for index in 0..self.queues.len() {
            self.select(index);
            let size = u16::try_from(self.function.read_common(0x18, 2)).unwrap();
            assert_eq!(size.min(MOST_DESCRIPTORS), self.queues[index].most, "a reset restores the size");
            assert_eq!(self.function.read_common(0x1c, 2), 0, "a reset disables queue {index}");
        }
    }

    /// The other guest gets its entropy, whatever goes on here.
    pub fn neighbour_works(&mut self) {
        use crate::testing::Buffer;
        assert_eq!(self.neighbour.request(&[Buffer::Write(self.buffer, 64)]), 64);
    }

    fn machine(&self) -> &'m Machine {
        self.function.machine
    }

    fn index(&self, queue: u8) -> Option<usize> {
        usize::from(queue).checked_rem(self.queues.len())
    }

    /// Where a register is now.
    fn address(&self, register: Register) -> u64 {
        self.function.bar(BAR).wrapping_add(self.offset(register))
    }

    fn offset(&self, register: Register) -> u64 {
        let (structure, offset) = match register {
            Register::Common(offset) => (self.function.common, u64::from(offset) % 0x40),
            Register::Isr(offset) => (self.function.isr, u64::from(offset)),
            Register::Device(offset) => (self.function.device, u64::from(offset)),
            Register::Notify(offset) => (self.function.notify, u64::from(offset)),
            Register::Table(offset) => (self.function.table, u64::from(offset)),
            Register::Pending(offset) => (self.function.pending, u64::from(offset)),
            Register::Anywhere(offset) => (self.home, u64::from(offset)),
        };
        structure - self.home + offset
    }

    fn value(&self, value: Value) -> u64 {
        match value {
            Value::Small(value) => value.into(),
            Value::Ones => u64::MAX,
            Value::Address(place) => self.place(place),
            Value::Any(value) => value,
        }
    }

    pub(super) fn place(&self, place: Place) -> u64 {
        let [(_, first), (second, length)] = Machine::RAM;
        match place {
            Place::Ram(at) => u64::from(at) * 16,
            Place::Rings(queue, offset) => {
                self.index(queue).map_or(0, |queue| self.queues[queue].base) + u64::from(offset)
            }
            Place::Hole(offset) => first.wrapping_add_signed(offset.into()),
            Place::End(offset) => (second + length).wrapping_add_signed(offset.into()),
            Place::Ecam(offset) => Machine::ECAM + u64::from(offset),
            Place::Own(offset) => self.function.bar(BAR).wrapping_add(offset.into()),
            Place::Neighbour(offset) => self.neighbours_bar + u64::from(offset),
            Place::Window(page) => Machine::MMIO64.start + 4096 * u64::from(page),
            Place::Top(offset) => u64::MAX - u64::from(offset),
            Place::Any(address) => address,
        }
    }

    fn through_the_window(&self, offset: Register, width: Width, value: Option<u32>) {
        let window = self.function.window;
        self.function.write_config(window + 4, 1, 0);
        self.function.write_config(window + 8, 4, self.offset(offset));
        self.function.write_config(window + 12, 4, width.bytes() as u64);
        let width = width.bytes().min(4);
        match value {
            Some(value) => self.function.write_config(window + 16, width, value.into()),
            None => drop(self.function.read_config(window + 16, width)),
        }
    }

    fn negotiate(&mut self, features: u64) {
        let known = status::ACKNOWLEDGE | status::DRIVER;
        self.function.set_status(0);
        self.function.set_status(known);
        self.function.accept(self.function.offered() & features | feature::VERSION_1);
        self.function.set_status(known | status::FEATURES_OK);
        self.function.write_common(0x10, 2, 0);
    }

    fn ready(&self) {
        self.function.set_status(self.function.status() | status::DRIVER_OK);
    }

    fn load(&self, address: u64, width: usize) {
        self.machine().read(address, width);
    }

    pub(super) fn store(&self, address: u64, width: usize, value: u64) {
        // A BAR can be moved onto what is the other guest's; but a guest does not reach that by a store.
        let others = [(self.neighbours_bar, BAR_SIZE), (Machine::ECAM, 1 << 20)];
        if !others.iter().any(|&(start, length)| address.wrapping_sub(start).wrapping_add(8) < length + 8) {
            self.machine().write(address, width, value);
        }
    }

    /// Stores to RAM, where there is some.
    pub(super) fn fill(&self, address: u64, bytes: &[u8]) {
        self.machine().try_store(address, bytes);
    }
}

fn aligned(offset: u16, width: Width) -> u16 {
    offset % 4096 / width.bytes() as u16 * width.bytes() as u16
}
