//! The driver's half of a split virtqueue (virtio 1.2 §2.7), and what a driver must never do with one.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestAddressSpace;

use super::Driver;
use super::Machine;
use crate::platform::MsiMessage;
use crate::virtio::spec::status;

/// Descriptor flags (virtio 1.2 §2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A piece of RAM offered to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// Device-readable.
    Read(u64, u32),
    /// Device-writable.
    Write(u64, u32),
}

/// A descriptor as it lies in the table; for chains no correct driver builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Guest-physical.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Flags.
    pub flags: u16,
    /// Next in the chain, if the flag says so.
    pub next: u16,
}

impl Descriptor {
    /// The chain goes on.
    pub const NEXT: u16 = NEXT;
    /// Device-writable.
    pub const WRITE: u16 = WRITE;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = INDIRECT;

    pub(crate) fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// An element of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub length: u32,
}

/// A queue the driver has set up.
pub struct Virtqueue<'m> {
    pub(super) machine: &'m Machine,
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring (driver area).
    pub available: u64,
    /// Used ring (device area).
    pub used: u64,
    /// Where to write the notification.
    pub(super) doorbell: u64,
    /// The queue's index, which is what is written.
    pub(super) index: u16,
    /// The interrupt the device sends.
    pub(super) interrupt: MsiMessage,
    free: VecDeque<u16>,
    next_used: u16,
    offered: u16,
}

impl<'m> Virtqueue<'m> {
    pub(super) fn new(machine: &'m Machine, size: u16) -> Self {
        let count = u64::from(size);
        let descriptors = machine.allocate(16 * count);
        let available = machine.allocate(6 + 2 * count);
        let used = machine.allocate(6 + 8 * count);
        let interrupt = MsiMessage::default();
        let free = (0..size).collect();
        let (next_used, offered, doorbell, index) = (0, 0, 0, 0);
        Self {
            machine,
            size,
            descriptors,
            available,
            used,
            doorbell,
            index,
            interrupt,
            free,
            next_used,
            offered,
        }
    }

    /// Builds a chain of free descriptors and makes it available; returns its head. Does not notify.
    pub fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let chain: Vec<u16> = self.free.drain(..buffers.len()).collect();
        for (i, buffer) in buffers.iter().enumerate() {
            let next = chain.get(i + 1).copied();
            let mut descriptor = to_descriptor(*buffer);
            descriptor.flags |= if next.is_some() { NEXT } else { 0 };
            descriptor.next = next.unwrap_or(0);
            self.write_descriptor(chain[i], descriptor);
        }
        self.make_available(chain[0]);
        chain[0]
    }

    /// The same with an indirect table (virtio 1.2 §2.7.5.3).
    pub fn offer_indirect(&mut self, buffers: &[Buffer]) -> u16 {
        let table = self.machine.allocate(16 * buffers.len() as u64);
        for (i, buffer) in (0u16..).zip(buffers) {
            let mut descriptor = to_descriptor(*buffer);
            if usize::from(i) + 1 < buffers.len() {
                descriptor.flags |= NEXT;
                descriptor.next = i + 1;
            }
            self.machine.store(table + 16 * u64::from(i), &descriptor.bytes());
        }
        let head = self.free.pop_front().unwrap();
        let length = u32::try_from(16 * buffers.len()).unwrap();
        self.write_descriptor(head, Descriptor { address: table, length, flags: INDIRECT, next: 0 });
        self.make_available(head);
        head
    }

    /// Offers a chain, notifies, waits until it is used and takes it back; returns the used length.
    pub fn request(&mut self, buffers: &[Buffer]) -> u32 {
        let head = self.offer(buffers);
        self.notify();
        let used = self.wait_used();
        assert_eq!(used.head, head, "one request at a time");
        used.length
    }

    /// Tells the device that something is available, whether or not it asked to be told.
    pub fn notify(&self) {
        self.machine.write(self.doorbell, 2, u64::from(self.index));
    }

    /// The next used element, if there is one. The descriptors of its chain are free again.
    pub fn take_used(&mut self) -> Option<Used> {
        let memory = self.machine.memory.memory();
        let index: u16 = memory.load(GuestAddress(self.used + 2), Ordering::Acquire).unwrap();
        if index == self.next_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let element = self.machine.load(at, 8);
        self.next_used = self.next_used.wrapping_add(1);
        // used_event (virtio 1.2 §2.7.10): interrupt again at the next one.
        let event = self.available + 4 + 2 * u64::from(self.size);
        memory.store(self.next_used, GuestAddress(event), Ordering::SeqCst).unwrap();
        let head = u16::from_le_bytes([element[0], element[1]]);
        let length = u32::from_le_bytes([element[4], element[5], element[6], element[7]]);
        self.release(head);
        Some(Used { head, length })
    }

    /// The next used element, waiting for the device's interrupt. Panics when none comes.
    pub fn wait_used(&mut self) -> Used {
        loop {
            if let Some(used) = self.take_used() {
                return used;
            }
            self.machine.platform.wait_for(self.interrupt);
        }
    }

    /// Waits until something is used, which is taken and makes this true, or the device needs a reset.
    pub fn wait_used_or_needs_reset(&mut self, driver: &Driver<'_>) -> bool {
        let configuration = driver.function.message(0);
        loop {
            if self.take_used().is_some() {
                return true;
            }
            if driver.function.status() & status::DEVICE_NEEDS_RESET != 0 {
                return false;
            }
            self.machine.platform.wait_for_any(&[self.interrupt, configuration]);
        }
    }

    /// Writes a descriptor, any descriptor.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.machine.store(self.descriptors + 16 * u64::from(index), &descriptor.bytes());
    }

    /// Puts a head, any head, into the available ring.
    pub fn make_available(&mut self, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.offered % self.size);
        self.machine.store(slot, &head.to_le_bytes());
        self.set_available_index(self.offered.wrapping_add(1));
    }

    /// Sets the available ring's index, to anything.
    pub fn set_available_index(&mut self, index: u16) {
        self.offered = index;
        let memory = self.machine.memory.memory();
        memory.store(index, GuestAddress(self.available + 2), Ordering::Release).unwrap();
    }

    /// Descriptors not in use.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    fn release(&mut self, head: u16) {
        let mut index = head;
        for _ in 0..self.size {
            let bytes = self.machine.load(self.descriptors + 16 * u64::from(index % self.size), 16);
            self.free.push_back(index);
            let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
            if flags & NEXT == 0 {
                return;
            }
            index = u16::from_le_bytes([bytes[14], bytes[15]]);
        }
    }
}

fn to_descriptor(buffer: Buffer) -> Descriptor {
    match buffer {
        Buffer::Read(address, length) => Descriptor { address, length, flags: 0, next: 0 },
        Buffer::Write(address, length) => Descriptor { address, length, flags: WRITE, next: 0 },
    }
}
