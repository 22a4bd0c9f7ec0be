//! A virtio driver over PCI: finds the structures, negotiates, sets up queues (virtio 1.2 §3.1, §4.1).

use super::Machine;
use super::Virtqueue;
use crate::platform::MsiMessage;
use crate::virtio::spec::feature;
use crate::virtio::spec::status;

/// Configuration space registers (PCI Local Bus 3.0 §6.1).
const COMMAND: u16 = 0x04;
const BAR0: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;
/// Memory space and bus master.
const COMMAND_ON: u64 = 0x6;
/// Capability ids.
const MSIX: u8 = 0x11;
const VENDOR: u8 = 0x09;
/// Where the interrupts of this driver go: one address, the data says which function and vector.
const MSI_ADDRESS: u64 = 0xfee0_0000;

/// A PCI function as its driver sees it after probing: BARs on, structures found, MSI-X enabled with every
/// vector open.
pub struct Function<'m> {
    /// The machine it is in.
    pub machine: &'m Machine,
    /// Its slot.
    pub slot: u8,
    /// Addresses of the virtio structures.
    pub common: u64,
    /// ISR status.
    pub isr: u64,
    /// Device configuration.
    pub device: u64,
    /// Notifications.
    pub notify: u64,
    notify_multiplier: u64,
    /// Offset of the capability for access through configuration space.
    pub window: u16,
    /// Offset of the MSI-X capability.
    pub msix: u16,
    /// Address of the MSI-X table.
    pub table: u64,
    /// Address of the pending bits.
    pub pending: u64,
    /// Vectors in the table.
    pub vectors: u16,
}

impl<'m> Function<'m> {
    /// Turns on memory space, walks the capabilities, enables MSI-X.
    pub fn probe(machine: &'m Machine, slot: u8) -> Self {
        let mut function = Self {
            machine,
            slot,
            common: 0,
            isr: 0,
            device: 0,
            notify: 0,
            notify_multiplier: 0,
            window: 0,
            msix: 0,
            table: 0,
            pending: 0,
            vectors: 0,
        };
        function.write_config(COMMAND, 2, COMMAND_ON);
        let mut at = function.read8(CAPABILITIES);
        while at != 0 {
            function.capability(u16::from(at));
            at = function.read8(u16::from(at) + 1);
        }
        function.open_vectors();
        function
    }

    fn capability(&mut self, at: u16) {
        match (self.read8(at), self.read8(at + 3)) {
            (MSIX, _) => {
                let address = |f: &Self, register| {
                    let value = f.read_config(register, 4);
                    f.bar(u8::try_from(value & 7).unwrap()) + (value & !7)
                };
                self.msix = at;
                self.table = address(self, at + 4);
                self.pending = address(self, at + 8);
                self.vectors = u16::try_from(self.read_config(at + 2, 2) & 0x7ff).unwrap() + 1;
            }
            (VENDOR, kind) => {
                let address = self.bar(self.read8(at + 4)) + self.read_config(at + 8, 4);
                match kind {
                    1 => self.common = address,
                    2 => {
                        self.notify = address;
                        self.notify_multiplier = self.read_config(at + 16, 4);
                    }
                    3 => self.isr = address,
                    4 => self.device = address,
                    5 => self.window = at,
                    _ => panic!("virtio structure {kind}"),
                }
            }
            (id, _) => panic!("capability {id:#x}"),
        }
    }

    /// Every vector unmasked, its message [`Function::message`], then MSI-X enabled.
    pub fn open_vectors(&self) {
        for vector in 0..self.vectors {
            let entry = self.table + 16 * u64::from(vector);
            let message = self.message(vector);
            self.machine.write(entry, 4, message.address & 0xffff_ffff);
            self.machine.write(entry + 4, 4, message.address >> 32);
            self.machine.write(entry + 8, 4, u64::from(message.data));
            self.machine.write(entry + 12, 4, 0);
        }
        self.write_config(self.msix + 2, 2, 0x8000);
    }

    /// What vector `vector` of this function sends.
    pub fn message(&self, vector: u16) -> MsiMessage {
        MsiMessage { address: MSI_ADDRESS, data: u32::from(self.slot) << 16 | u32::from(vector) }
    }

    /// A load from its configuration space.
    pub fn read_config(&self, offset: u16, width: usize) -> u64 {
        self.machine.read_config(self.slot, offset, width)
    }

    /// A store to its configuration space.
    pub fn write_config(&self, offset: u16, width: usize, value: u64) {
        self.machine.write_config(self.slot, offset, width, value);
    }

    fn read8(&self, offset: u16) -> u8 {
        u8::try_from(self.read_config(offset, 1)).unwrap()
    }

    /// The address in BAR `index`.
    pub fn bar(&self, index: u8) -> u64 {
        let register = BAR0 + 4 * u16::from(index);
        let low = self.read_config(register, 4);
        let high = if low & 4 != 0 { self.read_config(register + 4, 4) } else { 0 };
        high << 32 | (low & !0xf)
    }

    /// Writes the address in 64-bit BAR `index`.
    pub fn move_bar(&self, index: u8, address: u64) {
        let register = BAR0 + 4 * u16::from(index);
        self.write_config(register, 4, address & 0xffff_ffff);
        self.write_config(register + 4, 4, address >> 32);
    }

    /// A load from the common configuration structure.
    pub fn read_common(&self, offset: u64, width: usize) -> u64 {
        self.machine.read(self.common + offset, width)
    }

    /// A store to the common configuration structure.
    pub fn write_common(&self, offset: u64, width: usize, value: u64) {
        self.machine.write(self.common + offset, width, value);
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        u8::try_from(self.read_common(0x14, 1)).unwrap()
    }

    /// Writes device status.
    pub fn set_status(&self, status: u8) {
        self.write_common(0x14, 1, u64::from(status));
    }

    /// Feature bits the device offers.
    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.write_common(0x00, 4, select);
            self.read_common(0x04, 4)
        };
        half(1) << 32 | half(0)
    }

    /// Writes the feature bits the driver accepts.
    pub fn accept(&self, features: u64) {
        for select in [0, 1] {
            self.write_common(0x08, 4, select);
            self.write_common(0x0c, 4, (features >> (32 * select)) & 0xffff_ffff);
        }
    }
}

/// A driver in the middle of §3.1.1: features agreed, queues being set up; then ready.
pub struct Driver<'m> {
    /// The function driven.
    pub function: Function<'m>,
    /// Feature bits both sides agreed on.
    pub features: u64,
}

impl<'m> Driver<'m> {
    /// Steps 1 to 6: probe, reset, acknowledge, agree on VERSION_1, the two ring features and what `wanted`
    /// adds of the features offered.
    pub fn negotiate(machine: &'m Machine, slot: u8, wanted: u64) -> Self {
        let ring = feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
        Self::negotiate_exactly(machine, slot, wanted | feature::VERSION_1 | ring)
    }

    /// The same with nothing added.
    pub fn negotiate_exactly(machine: &'m Machine, slot: u8, wanted: u64) -> Self {
        let function = Function::probe(machine, slot);
        function.set_status(0);
        assert_eq!(function.status(), 0, "reset is complete when status reads 0");
        function.set_status(status::ACKNOWLEDGE);
        function.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let features = function.offered() & wanted;
        function.accept(features);
        let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        function.set_status(agreed);
        assert_eq!(function.status(), agreed, "the device accepts what it offered");
        // Vector 0 is for configuration changes, the others for queues.
        function.write_common(0x10, 2, 0);
        Self { function, features }
    }

    /// Step 7 for one queue, with all its device allows or `size` descriptors.
    pub fn queue(&self, index: u16, size: Option<u16>) -> Virtqueue<'m> {
        let function = &self.function;
        function.write_common(0x16, 2, u64::from(index));
        let most = u16::try_from(function.read_common(0x18, 2)).unwrap();
        assert_ne!(most, 0, "queue {index} does not exist");
        let mut queue = Virtqueue::new(function.machine, size.unwrap_or(most));
        function.write_common(0x18, 2, u64::from(queue.size));
        function.write_common(0x1a, 2, u64::from(index) + 1);
        assert_eq!(function.read_common(0x1a, 2), u64::from(index) + 1, "the vector exists");
        for (register, address) in [(0x20, queue.descriptors), (0x28, queue.available), (0x30, queue.used)] {
            function.write_common(register, 4, address & 0xffff_ffff);
            function.write_common(register + 4, 4, address >> 32);
        }
        function.write_common(0x1c, 2, 1);
        let offset = function.read_common(0x1e, 2) * function.notify_multiplier;
        queue.doorbell = function.notify + offset;
        queue.index = index;
        queue.interrupt = function.message(index + 1);
        queue
    }

    /// Step 7 for every queue, each as large as its device allows.
    pub fn queues(&self) -> Vec<Virtqueue<'m>> {
        let count = u16::try_from(self.function.read_common(0x12, 2)).unwrap();
        (0..count).map(|index| self.queue(index, None)).collect()
    }

    /// Step 8. The device is live afterwards.
    pub fn ready(&self) {
        self.function.set_status(self.function.status() | status::DRIVER_OK);
        let needs_reset = self.function.status() & status::DEVICE_NEEDS_RESET;
        assert_eq!(needs_reset, 0, "the device could not start");
    }

    /// Reads device configuration.
    pub fn config(&self, offset: u64, width: usize) -> u64 {
        self.function.machine.read(self.function.device + offset, width)
    }

    /// Resets the device and waits for it.
    pub fn reset(&self) {
        self.function.set_status(0);
        assert_eq!(self.function.status(), 0);
    }

    /// Waits until the device says it needs a reset.
    pub fn wait_needs_reset(&self) {
        while self.function.status() & status::DEVICE_NEEDS_RESET == 0 {
            self.function.machine.platform.wait_for(self.function.message(0));
        }
    }
}
