//! A PCI function that is nothing but its BARs, which answer with their index.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::bus::AccessError;
use crate::pci::config_space::ConfigSpace;
use crate::pci::config_space::Identity;
use crate::pci::function::Bar;
use crate::pci::function::ConfigEffects;
use crate::pci::function::PciFunction;

/// The function. A byte read from BAR n is 0x40 + n.
pub struct Plain {
    config: Mutex<ConfigSpace>,
    bars: Vec<Bar>,
    removed: AtomicBool,
}

impl Plain {
    /// With these BARs.
    pub fn new(bars: Vec<Bar>) -> Arc<Self> {
        let identity =
            Identity { vendor: 1, device: 2, revision: 0, class: 0, subsystem_vendor: 0, subsystem: 0 };
        let config = Mutex::new(ConfigSpace::new(identity, &bars));
        Arc::new(Self { config, bars, removed: AtomicBool::new(false) })
    }

    /// Whether it was told that it has left the bus.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }
}

impl PciFunction for Plain {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.lock().read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffects {
        self.config.lock().write(offset, data)
    }
    fn bars(&self) -> &[Bar] {
        &self.bars
    }
    fn read_bar(&self, bar: u8, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0x40 + bar);
        Ok(())
    }
    fn write_bar(&self, _: u8, offset: u64, _: &[u8]) -> Result<(), AccessError> {
        Err(AccessError::NoRegister(offset))
    }
    fn place_bar(&self, bar: u8, address: u64) {
        self.config.lock().place_bar(bar, address);
    }
    fn removed(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }
}
