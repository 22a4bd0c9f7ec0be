//! One segment with one bus: who is in which slot, and where its BARs are.
//!
//! The only code that puts BARs on the MMIO bus, registers doorbells and maps regions. Lock order: `slots`,
//! then a function's `places`, then whatever the function locks, then the bus.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::ecam::ECAM_SIZE;
use super::ecam::Ecam;
use super::function::Bar;
use super::function::ConfigEffects;
use super::function::PciFunction;
use super::function::Region;
use super::host_bridge::HostBridge;
use crate::bus::AccessError;
use crate::bus::Bus;
use crate::bus::BusDevice;
use crate::bus::InsertError as BusInsertError;
use crate::log_limit::LogLimit;
use crate::platform::Platform;

#[cfg(test)]
mod tests;

const SLOTS: u8 = 32;
/// The guest decides where BARs are, as often as it likes.
static REFUSALS: LogLimit = LogLimit::new();

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
    /// The slot is taken, or is none.
    #[error("slot {0} cannot be had")]
    Slot(u8),
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
    slots: Mutex<BTreeMap<u8, Arc<Slot>>>,
}

/// A slot that is taken.
pub(super) struct Slot {
    function: Arc<dyn PciFunction>,
    /// BAR index → where it is; `None` once the function has left the bus.
    places: Mutex<Option<BTreeMap<u8, Place>>>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    /// Where it is decoded, or was last, or will be first.
    address: u64,
    size: u64,
    /// It is on the MMIO bus.
    decoded: bool,
}

impl PciSegment {
    /// A bus with only its host bridge, its configuration space on `mmio`.
    pub fn new(mmio: Arc<Bus>, platform: Platform, windows: Windows) -> Result<Arc<Self>, BusInsertError> {
        let ecam = windows.ecam;
        let bridge = Slot::new(Arc::new(HostBridge::new()), BTreeMap::new());
        let slots = Mutex::new(BTreeMap::from([(0, bridge)]));
        let segment = Arc::new(Self { mmio: mmio.clone(), platform, windows, slots });
        mmio.insert(ecam, ECAM_SIZE, Arc::new(Ecam::new(&segment)))?;
        Ok(segment)
    }

    /// Puts a function into the lowest free slot and places its BARs; returns the slot. Decoding starts when
    /// the driver enables memory space.
    pub fn insert(&self, function: Arc<dyn PciFunction>) -> Result<u8, InsertError> {
        let mut slots = self.slots.lock();
        let number = (1..SLOTS).find(|n| !slots.contains_key(n)).ok_or(InsertError::NoSlot)?;
        self.insert_at(&mut slots, number, function)?;
        Ok(number)
    }

    /// Puts a function into `slot`, where it was when it was saved. `restore` gives it its registers back, and says
    /// where its BARs are decoded by them. If it fails, the function is off the bus again.
    pub fn restore<E: From<InsertError>>(
        &self,
        slot: u8,
        function: Arc<dyn PciFunction>,
        restore: impl FnOnce() -> Result<ConfigEffects, E>,
    ) -> Result<(), E> {
        {
            let mut slots = self.slots.lock();
            if !(1..SLOTS).contains(&slot) || slots.contains_key(&slot) {
                return Err(InsertError::Slot(slot).into());
            }
            self.insert_at(&mut slots, slot, function)?;
        }
        match restore() {
            Ok(effects) => {
                if let Some(slot) = self.slot(slot)
                    && let Some(places) = slot.places.lock().as_mut()
                {
                    self.apply(&slot, places, effects);
                }
                Ok(())
            }
            Err(error) => {
                self.remove(slot);
                Err(error)
            }
        }
    }

    fn insert_at(
        &self,
        slots: &mut BTreeMap<u8, Arc<Slot>>,
        number: u8,
        function: Arc<dyn PciFunction>,
    ) -> Result<(), InsertError> {
        let mut taken = taken(slots);
        let mut places = BTreeMap::new();
        for &Bar { index, size, is_64bit, .. } in function.bars() {
            let window = if is_64bit { &self.windows.mmio64 } else { &self.windows.mmio32 };
            let address = first_gap(&taken, window, size).ok_or(InsertError::NoRoom { size })?;
            taken.insert(address, size);
            places.insert(index, Place { address, size, decoded: false });
        }
        for (&bar, place) in &places {
            function.place_bar(bar, place.address);
        }
        slots.insert(number, Slot::new(function, places));
        Ok(())
    }

    /// Takes the function in `slot` off the bus: when it returns, nothing of it is reachable and it has
    /// stopped. An empty slot is left alone, and so is the host bridge.
    pub fn remove(&self, slot: u8) {
        if slot == 0 {
            return;
        }
        let Some(slot) = self.slots.lock().remove(&slot) else { return };
        // A vCPU in the middle of a configuration write finds `None` and leaves everything off the bus.
        for (bar, place) in slot.places.lock().take().into_iter().flatten() {
            if place.decoded {
                self.undecode(&slot, bar, place.address);
            }
        }
        slot.function.removed();
    }

    pub(super) fn slot(&self, number: u8) -> Option<Arc<Slot>> {
        self.slots.lock().get(&number).cloned()
    }

    pub(super) fn write_config(&self, slot: &Arc<Slot>, offset: u16, data: &[u8]) {
        // Held across the write: two vCPUs moving one BAR must not apply in the other order.
        let mut places = slot.places.lock();
        let Some(places) = places.as_mut() else { return };
        let effects = slot.function.write_config(offset, data);
        self.apply(slot, places, effects);
    }

    fn apply(&self, slot: &Slot, places: &mut BTreeMap<u8, Place>, effects: ConfigEffects) {
        for (bar, _, now) in effects.moved {
            let Some(place) = places.get_mut(&bar) else { continue };
            if place.decoded {
                self.undecode(slot, bar, place.address);
                place.decoded = false;
            }
            if let Some(address) = now
                && self.decode(slot, bar, address)
            {
                *place = Place { address, decoded: true, ..*place };
            }
        }
    }

    /// Puts a BAR on the bus, unless the driver wants it where it may not be: over RAM, over another BAR or
    /// outside the windows it was told of. Then nothing answers there, which harms nobody but the driver.
    fn decode(&self, slot: &Slot, index: u8, address: u64) -> bool {
        let Some(bar) = slot.bar(index) else { return false };
        let refused = |why: &dyn std::fmt::Display| {
            if REFUSALS.allows() {
                tracing::warn!("BAR {index} is not decoded at {address:#x}: {why}");
            }
            false
        };
        let end = address.checked_add(bar.size);
        let inside = |w: &Range<u64>| w.start <= address && end.is_some_and(|end| end <= w.end);
        if !inside(&self.windows.mmio32) && !inside(&self.windows.mmio64) {
            // Sizing a BAR comes through here too, so it is no news.
            return false;
        }
        let device = Arc::new(BarAccess { function: slot.function.clone(), bar: index });
        if let Err(e) = self.mmio.insert(address, bar.size, device) {
            return refused(&e);
        }
        for (done, region) in bar.regions.iter().enumerate() {
            if let Err(e) = self.connect(region, address) {
                bar.regions[..done].iter().for_each(|region| self.disconnect(region, address));
                self.mmio.remove(address);
                return refused(&e);
            }
        }
        true
    }

    fn undecode(&self, slot: &Slot, index: u8, address: u64) {
        let Some(bar) = slot.bar(index) else { return };
        bar.regions.iter().for_each(|region| self.disconnect(region, address));
        self.mmio.remove(address);
    }

    fn connect(&self, region: &Region, address: u64) -> io::Result<()> {
        match region {
            Region::Doorbell { offset, event } => self.platform.doorbells.add(address + offset, event),
            Region::Mapped { offset, length, host_address, read_only } => {
                self.platform.mapper.map(address + offset, *host_address, *length, *read_only)
            }
        }
    }

    fn disconnect(&self, region: &Region, address: u64) {
        let done = match region {
            Region::Doorbell { offset, event } => self.platform.doorbells.remove(address + offset, event),
            Region::Mapped { offset, length, .. } => self.platform.mapper.unmap(address + offset, *length),
        };
        if let Err(e) = done {
            tracing::error!("the host did not take a region of a BAR at {address:#x} back: {e}");
        }
    }
}

/// Start → size of every BAR, decoded or not.
fn taken(slots: &BTreeMap<u8, Arc<Slot>>) -> BTreeMap<u64, u64> {
    let mut taken = BTreeMap::new();
    for slot in slots.values() {
        taken.extend(slot.places.lock().iter().flatten().map(|(_, place)| (place.address, place.size)));
    }
    taken
}

/// First fit, naturally aligned.
fn first_gap(taken: &BTreeMap<u64, u64>, window: &Range<u64>, size: u64) -> Option<u64> {
    let mut at = window.start.checked_next_multiple_of(size)?;
    for (&start, &length) in taken {
        if at.checked_add(size)? <= start {
            break;
        }
        at = at.max((start + length).checked_next_multiple_of(size)?);
    }
    (at.checked_add(size)? <= window.end).then_some(at)
}

impl Slot {
    fn new(function: Arc<dyn PciFunction>, places: BTreeMap<u8, Place>) -> Arc<Self> {
        Arc::new(Self { function, places: Mutex::new(Some(places)) })
    }

    pub(super) fn function(&self) -> &dyn PciFunction {
        self.function.as_ref()
    }

    fn bar(&self, index: u8) -> Option<&Bar> {
        self.function.bars().iter().find(|bar| bar.index == index)
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
