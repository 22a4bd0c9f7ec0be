//! The function in slot 0 (class 06.00): an identity and nothing else. What it bridges, ACPI describes.

use super::config_space::ConfigSpace;
use super::config_space::Identity;
use super::function::Bar;
use super::function::ConfigEffects;
use super::function::PciFunction;
use crate::bus::AccessError;

pub(super) struct HostBridge(ConfigSpace);

impl HostBridge {
    pub(super) fn new() -> Self {
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_00_00,
            subsystem_vendor: 0,
            subsystem: 0,
        };
        Self(ConfigSpace::new(identity, &[]))
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
