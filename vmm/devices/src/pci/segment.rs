//! One segment with one bus: who is in which slot, where BARs are, and ECAM (PCI Express 5.0 §7.2.2).
//!
//! The only code that puts BARs on the MMIO bus, registers doorbells and maps regions. Lock order: `slots`,
//! then a function's `decoded`, then the bus.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::config_space::ConfigSpace;
use super::config_space::Identity;
use super::function::Bar;
use super::function::ConfigEffects;
use super::function::PciFunction;
use super::function::Region;
use crate::bus::AccessError;
use crate::bus::Bus;
use crate::bus::BusDevice;
use crate::bus::InsertError as BusInsertError;
use crate::platform::Platform;

const SLOTS: u8 = 32;
/// Bytes of configuration space of one bus.
const ECAM_SIZE: u64 = 1 << 20;

/// Where the segment may put things, guest-physical.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Configuration space of bus 0, one MiB.
    pub ecam: u64,
    /// 32-bit BARs.
    pub mmio32: Range<u64>,
    /// 64-bit BARs.
    pub mmio64: Range<u64>,
}

/// Why a function could not be put on the bus; nothing changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InsertError {
    /// All 31 slots are taken.
    #[error("all 31 slots are taken")]
    NoSlot,
    /// The window has no room for a BAR.
    #[error("no room for a BAR of {size:#x} bytes")]
    NoRoom {
        /// Bytes of the BAR.
        size: u64,
    },
}

/// The segment.
pub struct PciSegment {
    mmio: Arc<Bus>,
    platform: Platform,
    windows: Windows,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    functions: BTreeMap<u8, Arc<Placed>>,
    /// Start → length of every BAR handed out.
    allocated: BTreeMap<u64, u64>,
}

struct Placed {
    function: Arc<dyn PciFunction>,
    /// Start addresses given to its BARs.
    allocated: Vec<u64>,
    /// BAR index → address at which it is on the MMIO bus now.
    decoded: Mutex<BTreeMap<u8, u64>>,
}

impl PciSegment {
    /// A bus with only its host bridge, its configuration space on `mmio`.
    pub fn new(mmio: Arc<Bus>, platform: Platform, windows: Windows) -> Result<Arc<Self>, BusInsertError> {
        let ecam = windows.ecam;
        let slots = Mutex::new(Slots::default());
        let segment = Arc::new(Self { mmio: mmio.clone(), platform, windows, slots });
        segment.slots.lock().functions.insert(0, Placed::new(Arc::new(HostBridge::new()), Vec::new()));
        mmio.insert(ecam, ECAM_SIZE, Arc::new(Ecam(segment.clone())))?;
        Ok(segment)
    }

    /// Puts a function into the lowest free slot and places its BARs; returns the slot. Decoding starts when
    /// the driver enables memory space.
    pub fn insert(&self, function: Arc<dyn PciFunction>) -> Result<u8, InsertError> {
        let mut slots = self.slots.lock();
        let slot = (1..SLOTS).find(|s| !slots.functions.contains_key(s)).ok_or(InsertError::NoSlot)?;
        let mut taken = Vec::new();
        for bar in function.bars() {
            let window = if bar.is_64bit { &self.windows.mmio64 } else { &self.windows.mmio32 };
            match slots.allocate(window, bar.size) {
                Some(address) => taken.push((bar.index, address)),
                None => {
                    for (_, address) in taken {
                        slots.allocated.remove(&address);
                    }
                    return Err(InsertError::NoRoom { size: bar.size });
                }
            }
        }
        for &(bar, address) in &taken {
            function.place_bar(bar, address);
        }
        let allocated = taken.into_iter().map(|(_, address)| address).collect();
        slots.functions.insert(slot, Placed::new(function, allocated));
        Ok(slot)
    }

    /// Takes the function in `slot` off the bus: when it returns, nothing of it is reachable and it has
    /// stopped. An empty slot is left alone.
    pub fn remove(&self, slot: u8) {
        let Some(placed) = self.slots.lock().functions.remove(&slot) else { return };
        {
            let mut decoded = placed.decoded.lock();
            for (bar, address) in std::mem::take(&mut *decoded) {
                self.undecode(&placed, bar, address);
            }
        }
        placed.function.removed();
        let mut slots = self.slots.lock();
        for address in &placed.allocated {
            slots.allocated.remove(address);
        }
    }

    fn function(&self, slot: u8) -> Option<Arc<Placed>> {
        self.slots.lock().functions.get(&slot).cloned()
    }

    fn write_config(&self, placed: &Arc<Placed>, offset: u16, data: &[u8]) {
        // Held across the write: two vCPUs moving one BAR must not apply in the other order.
        let mut decoded = placed.decoded.lock();
        let ConfigEffects { moved } = placed.function.write_config(offset, data);
        for (bar, _, now) in moved {
            if let Some(address) = decoded.remove(&bar) {
                self.undecode(placed, bar, address);
            }
            if let Some(address) = now
                && self.decode(placed, bar, address)
            {
                decoded.insert(bar, address);
            }
        }
    }

    /// Puts a BAR on the bus, unless the driver wants it where it may not be: over RAM, over another BAR or
    /// outside the windows it was told of. Then nothing answers there, which harms nobody but the driver.
    fn decode(&self, placed: &Arc<Placed>, index: u8, address: u64) -> bool {
        let Some(bar) = placed.bar(index) else { return false };
        let Some(end) = address.checked_add(bar.size) else { return false };
        let inside = |w: &Range<u64>| w.start <= address && end <= w.end;
        if !inside(&self.windows.mmio32) && !inside(&self.windows.mmio64) {
            tracing::debug!("BAR {index} at {address:#x} is outside the windows: not decoded");
            return false;
        }
        let device = Arc::new(BarAccess { function: placed.function.clone(), bar: index });
        if let Err(e) = self.mmio.insert(address, bar.size, device) {
            tracing::debug!("BAR {index} not decoded: {e}");
            return false;
        }
        for region in &bar.regions {
            let done = match region {
                Region::Doorbell { offset, event } => self.platform.doorbells.add(address + offset, event),
                Region::Mapped { offset, length, host_address, read_only } => {
                    self.platform.mapper.map(address + offset, *host_address, *length, *read_only)
                }
            };
            // Accesses are still trapped, so the region works, only slower.
            if let Err(e) = done {
                tracing::warn!("BAR {index} at {address:#x}: {e}");
            }
        }
        true
    }

    fn undecode(&self, placed: &Placed, index: u8, address: u64) {
        self.mmio.remove(address);
        let Some(bar) = placed.bar(index) else { return };
        for region in &bar.regions {
            // What could not be added before cannot be removed now.
            let _ = match region {
                Region::Doorbell { offset, event } => self.platform.doorbells.remove(address + offset, event),
                Region::Mapped { offset, length, .. } => {
                    self.platform.mapper.unmap(address + offset, *length)
                }
            };
        }
    }
}

impl Slots {
    /// First fit, naturally aligned.
    fn allocate(&mut self, window: &Range<u64>, size: u64) -> Option<u64> {
        let mut at = window.start.next_multiple_of(size);
        for (&start, &length) in self.allocated.range(window.clone()) {
            if at + size <= start {
                break;
            }
            at = at.max((start + length).next_multiple_of(size));
        }
        (at + size <= window.end).then(|| {
            self.allocated.insert(at, size);
            at
        })
    }
}

impl Placed {
    fn new(function: Arc<dyn PciFunction>, allocated: Vec<u64>) -> Arc<Self> {
        Arc::new(Self { function, allocated, decoded: Mutex::default() })
    }

    fn bar(&self, index: u8) -> Option<&Bar> {
        self.function.bars().iter().find(|bar| bar.index == index)
    }
}

/// Configuration space as memory: bits 15 to 19 of the offset are the slot, 12 to 14 the function.
struct Ecam(Arc<PciSegment>);

impl Ecam {
    fn decode(offset: u64, width: usize) -> Result<(u8, u8, u16), AccessError> {
        if !matches!(width, 1 | 2 | 4) || !offset.is_multiple_of(width as u64) {
            return Err(AccessError::Width { offset, width });
        }
        let field = |shift: u32, bits: u32| (offset >> shift) & ((1 << bits) - 1);
        let slot = u8::try_from(field(15, 5)).expect("five bits");
        let function = u8::try_from(field(12, 3)).expect("three bits");
        let register = u16::try_from(field(0, 12)).expect("twelve bits");
        Ok((slot, function, register))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let (slot, function, register) = Self::decode(offset, data.len())?;
        match self.0.function(slot) {
            Some(placed) if function == 0 => placed.function.read_config(register, data),
            // An empty slot reads as ones; that is how a driver sees that it is empty.
            _ => data.fill(0xff),
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let (slot, function, register) = Self::decode(offset, data.len())?;
        if let (Some(placed), 0) = (self.0.function(slot), function) {
            self.0.write_config(&placed, register, data);
        }
        Ok(())
    }
}

struct BarAccess {
    function: Arc<dyn PciFunction>,
    bar: u8,
}

impl BusDevice for BarAccess {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.function.read_bar(self.bar, offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.function.write_bar(self.bar, offset, data)
    }
}

/// The function in slot 0 (class 06.00). It has an identity and nothing else.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        Self(ConfigSpace::new(
            Identity {
                vendor: 0x1b36,
                device: 0x0008,
                revision: 0,
                class: 0x06_00_00,
                subsystem_vendor: 0,
                subsystem: 0,
            },
            &[],
        ))
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn write_config(&self, _: u16, _: &[u8]) -> ConfigEffects {
        ConfigEffects::default()
    }
    fn bars(&self) -> &[Bar] {
        &[]
    }
    fn read_bar(&self, _: u8, offset: u64, _: &mut [u8]) -> Result<(), AccessError> {
        Err(AccessError::NoRegister(offset))
    }
    fn write_bar(&self, _: u8, offset: u64, _: &[u8]) -> Result<(), AccessError> {
        Err(AccessError::NoRegister(offset))
    }
    fn place_bar(&self, _: u8, _: u64) {}
    fn removed(&self) {}
}
