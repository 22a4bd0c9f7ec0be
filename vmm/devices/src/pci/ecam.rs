//! Configuration space as memory (PCI Express 5.0 §7.2.2): bits 15 to 19 of the offset are the slot, 12 to 14
//! the function, the rest the register. There is one bus.

use std::sync::Arc;
use std::sync::Weak;

use super::segment::PciSegment;
use super::segment::Slot;
use crate::bus::AccessError;
use crate::bus::BusDevice;

/// Bytes of configuration space of one bus.
pub(super) const ECAM_SIZE: u64 = 1 << 20;

/// Weak, because the segment keeps the bus this is on.
pub(super) struct Ecam(Weak<PciSegment>);

impl Ecam {
    pub(super) fn new(segment: &Arc<PciSegment>) -> Self {
        Self(Arc::downgrade(segment))
    }

    /// The segment, and the slot if there is a function 0 in it; no device here has another.
    fn slot(&self, slot: u8, function: u8) -> Option<(Arc<PciSegment>, Arc<Slot>)> {
        let segment = self.0.upgrade()?;
        let slot = segment.slot(slot).filter(|_| function == 0)?;
        Some((segment, slot))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let (slot, function, register) = decode(offset, data.len())?;
        match self.slot(slot, function) {
            Some((_, slot)) => slot.function().read_config(register, data),
            // An empty slot reads as ones; that is how a driver sees that it is empty.
            None => data.fill(0xff),
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let (slot, function, register) = decode(offset, data.len())?;
        if let Some((segment, slot)) = self.slot(slot, function) {
            segment.write_config(&slot, register, data);
        }
        Ok(())
    }
}

/// Slot, function and register.
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
