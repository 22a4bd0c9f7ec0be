//! RAM, one MMIO bus and one PCI segment, as a guest's instructions reach them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryMmap;

use super::FakePlatform;
use super::fence::Fenced;
use crate::bus::Bus;
use crate::pci::function::PciFunction;
use crate::pci::segment::PciSegment;
use crate::pci::segment::Windows;
use crate::platform::GuestMemory;
use crate::virtio::device::VirtioDevice;
use crate::virtio::transport::pci::VirtioPciFunction;

const MIB: u64 = 1 << 20;
/// Bytes of configuration space of one slot: eight functions of 4 KiB.
const ECAM_SLOT: u64 = 0x8000;

/// The machine. Its RAM has a hole, so that chains can lead across one.
pub struct Machine {
    /// Where devices get interrupts and doorbells.
    pub platform: Arc<FakePlatform>,
    /// The MMIO bus.
    pub mmio: Arc<Bus>,
    /// The PCI segment on it.
    pub segment: Arc<PciSegment>,
    /// RAM.
    pub memory: GuestMemory,
    next_free: AtomicU64,
    /// What the RAM lies in, and that of machines beside. The last to go: functions on the segment use it.
    fences: Arc<Mutex<Vec<Fenced>>>,
}

impl Machine {
    /// The two pieces of RAM: start and bytes.
    pub const RAM: [(u64, u64); 2] = [(0, 16 * MIB), (32 * MIB, 16 * MIB)];
    /// Configuration space.
    pub const ECAM: u64 = 0xe800_0000;
    /// Window of 32-bit BARs.
    pub const MMIO32: std::ops::Range<u64> = 0xc000_0000..0xe000_0000;
    /// Window of 64-bit BARs.
    pub const MMIO64: std::ops::Range<u64> = 0x40_0000_0000..0x60_0000_0000;

    /// A machine with only a host bridge.
    pub fn new() -> Self {
        Self::on(FakePlatform::new())
    }

    /// The same on a platform of the test's own.
    pub fn on(platform: Arc<FakePlatform>) -> Self {
        let mmio = Arc::new(Bus::new("MMIO"));
        let windows = Windows { ecam: Self::ECAM, mmio32: Self::MMIO32, mmio64: Self::MMIO64 };
        let segment = PciSegment::new(mmio.clone(), platform.platform(), windows).unwrap();
        Self::with(platform, mmio, segment, Arc::default())
    }

    /// Other RAM on the same buses: devices plugged here are another guest's.
    pub fn beside(&self) -> Self {
        Self::with(self.platform.clone(), self.mmio.clone(), self.segment.clone(), self.fences.clone())
    }

    fn with(
        platform: Arc<FakePlatform>,
        mmio: Arc<Bus>,
        segment: Arc<PciSegment>,
        fences: Arc<Mutex<Vec<Fenced>>>,
    ) -> Self {
        let region = |(start, length)| {
            let fenced = Fenced::new(usize::try_from(length).unwrap());
            let region = fenced.region(start);
            fences.lock().push(fenced);
            region
        };
        let regions = Self::RAM.into_iter().map(region).collect();
        let memory = GuestMemory::new(GuestMemoryMmap::from_regions(regions).unwrap());
        Self { platform, mmio, segment, memory, next_free: AtomicU64::new(MIB), fences }
    }

    /// Panics if something was written just outside of the RAM of this machine or one beside it.
    pub fn assert_unharmed(&self) {
        self.fences.lock().iter().for_each(Fenced::assert_unharmed);
    }

    /// Makes a virtio device a function and puts it into a slot, which is returned.
    pub fn plug(&self, device: impl VirtioDevice + 'static) -> u8 {
        let platform = self.platform.platform();
        let function = VirtioPciFunction::new(Box::new(device), self.memory.clone(), platform).unwrap();
        self.insert(function)
    }

    /// Puts a function into a slot, which is returned.
    pub fn insert(&self, function: Arc<dyn PciFunction>) -> u8 {
        self.segment.insert(function).unwrap()
    }

    /// A guest's load from a device. Little-endian, `width` 1, 2, 4 or 8.
    pub fn read(&self, address: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        self.mmio.read(address, &mut data[..width]);
        u64::from_le_bytes(data)
    }

    /// A guest's store to a device.
    pub fn write(&self, address: u64, width: usize, value: u64) {
        if !self.platform.ring(address) {
            self.mmio.write(address, &value.to_le_bytes()[..width]);
        }
    }

    /// A load from configuration space of function 0 in `slot`.
    pub fn read_config(&self, slot: u8, offset: u16, width: usize) -> u64 {
        self.read(Self::ECAM + u64::from(slot) * ECAM_SLOT + u64::from(offset), width)
    }

    /// A store to configuration space of function 0 in `slot`.
    pub fn write_config(&self, slot: u8, offset: u16, width: usize, value: u64) {
        self.write(Self::ECAM + u64::from(slot) * ECAM_SLOT + u64::from(offset), width, value);
    }

    /// RAM nobody else was given, zeroed, on a boundary of 4096 bytes.
    pub fn allocate(&self, length: u64) -> u64 {
        let address = self.next_free.fetch_add(length.next_multiple_of(4096), Ordering::Relaxed);
        let end = Self::RAM[0].0 + Self::RAM[0].1;
        assert!(address + length <= end, "the test's RAM is used up");
        self.store(address, &vec![0; usize::try_from(length).unwrap()]);
        address
    }

    /// Puts bytes into RAM.
    pub fn store(&self, address: u64, bytes: &[u8]) {
        self.memory.memory().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// Puts bytes wherever there is RAM for them; false if there is none.
    pub fn try_store(&self, address: u64, bytes: &[u8]) -> bool {
        self.memory.memory().write_slice(bytes, GuestAddress(address)).is_ok()
    }

    /// Takes bytes out of RAM.
    pub fn load(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.memory().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}
