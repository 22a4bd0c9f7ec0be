//! The guest's ways to end itself: the ACPI reset and sleep registers and the keyboard controller's reset
//! line, all plain ports.

use std::sync::Arc;

use kiai_devices::bus::AccessError;
use kiai_devices::bus::BusDevice;

use crate::acpi;
use crate::handle::Ending;
use crate::vcpu::Control;

/// Sleep control register: SLP_EN, and where SLP_TYP starts (ACPI 6.5 §4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
/// Keyboard controller command: pulse the reset line.
const PULSE_RESET: u8 = 0xfe;

/// Reset (offset 0), sleep control (1) and sleep status (2).
pub(super) struct AcpiPower(pub(super) Arc<Control>);

impl BusDevice for AcpiPower {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (0, [acpi::RESET_VALUE]) => self.0.end(Ending::Reset),
            (1, [value]) if value & SLEEP_ENABLE != 0 => {
                if (value >> SLEEP_TYPE_SHIFT) & 7 == acpi::SLEEP_TYPE_S5 {
                    self.0.end(Ending::PowerOff);
                }
            }
            (0..=2, [_]) => {}
            _ => return Err(AccessError::Width { offset, width: data.len() }),
        }
        Ok(())
    }
}

/// Port 0x64: reads as an idle controller, resets on 0xfe.
pub(super) struct KeyboardReset(pub(super) Arc<Control>);

impl BusDevice for KeyboardReset {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0);
        Ok(())
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Result<(), AccessError> {
        if data == [PULSE_RESET] {
            self.0.end(Ending::Reset);
        }
        Ok(())
    }
}
