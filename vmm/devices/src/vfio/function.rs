//! A function of the host on the guest's bus.
//!
//! Memory space stays enabled in the real command register as long as the function is held, because a page the
//! guest has mapped must never fault; what the guest writes there decides where the BARs are in its own address
//! space. Bus mastering follows the guest, and ends when the function leaves.
//!
//! Lock order: configuration space, then interrupts.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::config;
use super::config::Config;
use super::config::Effect;
use super::config::Offer;
use super::config::Snapshot;
use super::device;
use super::device::Device;
use super::interrupt::Interrupts;
use super::interrupt::Line;
use super::layout;
use super::layout::MsixPlace;
use super::uapi::Mapping;
use crate::bus::AccessError;
use crate::ioapic::IoApic;
use crate::log_limit::LogLimit;
use crate::pci::function::Bar;
use crate::pci::function::ConfigEffects;
use crate::pci::function::PciFunction;
use crate::pci::function::Region;
use crate::pci::msix::Msix;
use crate::platform;

static REFUSALS: LogLimit = LogLimit::new();

/// Why a function cannot be passed. It was reset and is let go of.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// The kernel or the machine refused.
    #[error("{step}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Bridges are the host's.
    #[error("it is a bridge; only endpoints can be passed")]
    Bridge,
}

/// A passed function.
pub struct VfioFunction {
    device: Arc<dyn Device>,
    config: Mutex<Config>,
    bars: Vec<Bar>,
    /// Real sizes of the regions behind the BARs.
    sizes: [u64; 6],
    msix: Option<MsixPlace>,
    interrupts: Interrupts,
    /// What the regions of `bars` point into.
    _mappings: Vec<Mapping>,
}

impl VfioFunction {
    /// Takes a function over that was reset when it was opened: reads what it is, maps its BARs. One that can only
    /// pull a pin gets `pin` of the I/O APIC, which it may share.
    pub fn new(
        device: Arc<dyn Device>,
        interrupts: &dyn platform::Interrupts,
        (ioapic, pin): (&IoApic, u32),
    ) -> Result<Arc<Self>, VfioError> {
        let at = |step| move |source| VfioError::Host { step, source };
        let mut raw = [0; config::SIZE];
        device.read(device::CONFIG, 0, &mut raw).map_err(at("read configuration space"))?;
        let snapshot = Snapshot(raw);
        if !snapshot.is_endpoint() {
            return Err(VfioError::Bridge);
        }
        let mut regions: [device::Region; 6] = Default::default();
        for (index, region) in (0..).zip(&mut regions) {
            *region = device.region(index).map_err(at("describe a BAR"))?;
        }
        let msix = snapshot.msix().filter(|place| is_inside(place, &regions));
        let (bars, mappings) = bars(device.as_ref(), &snapshot, &regions, msix.as_ref())?;
        let vectors = |count| interrupts.vectors(count).map_err(at("interrupts"));
        let table = msix.map(|place| vectors(place.vectors).map(Msix::of_external)).transpose()?;
        let msi = vectors(snapshot.msi_messages())?;
        let only_pin = snapshot.has_pin() && table.is_none() && msi.is_empty();
        let line = only_pin.then(|| Line::new(device.clone(), ioapic, pin)).flatten();
        let offer = Offer { reset: device.can_reset(), pin: line.is_some(), msix: msix.is_some() };
        let interrupts = Interrupts::new(device.clone(), table, msi, line).map_err(at("interrupt pin"))?;
        set_command(device.as_ref(), 0).map_err(at("enable memory space"))?;
        Ok(Arc::new(Self {
            config: Mutex::new(Config::new(&snapshot, &bars, offer)),
            bars,
            sizes: regions.map(|region| region.size),
            msix,
            interrupts,
            device,
            _mappings: mappings,
        }))
    }

    fn apply(&self, config: &mut Config, effect: Effect, moved: &mut ConfigEffects) {
        match effect {
            Effect::Command(command) => {
                report("command register", set_command(self.device.as_ref(), command))
            }
            Effect::Msi(state) => self.interrupts.set_msi(state),
            Effect::MsixControl(control) => self.interrupts.set_msix(control),
            Effect::Reset => {
                self.interrupts.reset();
                report("function level reset", self.device.reset());
                moved.moved.extend(config.reset().moved);
                report("command register", set_command(self.device.as_ref(), 0));
            }
        }
    }

    /// An offset in a BAR as one in the region behind it, if the access lies wholly inside.
    fn inside(&self, bar: u8, offset: u64, width: usize) -> Result<(), AccessError> {
        let size = self.sizes.get(usize::from(bar)).copied().unwrap_or(0);
        match offset.checked_add(width as u64) {
            Some(end) if end <= size => Ok(()),
            _ => Err(AccessError::NoRegister(offset)),
        }
    }

    /// Which of the emulated MSI-X structures is at an offset, and the offset in it.
    fn emulated(&self, bar: u8, offset: u64) -> Option<(&Msix, Structure, u64)> {
        let (place, msix) = (self.msix.as_ref()?, self.interrupts.msix.as_ref()?);
        let within = |range: Option<std::ops::Range<u64>>| range.filter(|range| range.contains(&offset));
        if let Some(table) = within(place.table_in(bar)) {
            return Some((msix, Structure::Table, offset - table.start));
        }
        let pending = within(place.pending_in(bar))?;
        Some((msix, Structure::Pending, offset - pending.start))
    }
}

enum Structure {
    Table,
    Pending,
}

/// Whether both structures lie within their BARs; what does not is no table.
fn is_inside(place: &MsixPlace, regions: &[device::Region; 6]) -> bool {
    let size = |bar: u8| regions.get(usize::from(bar)).map_or(0, |region| region.size);
    let fits = |bar, range: Option<std::ops::Range<u64>>| range.is_some_and(|range| range.end <= size(bar));
    fits(place.table.0, place.table_in(place.table.0))
        && fits(place.pending.0, place.pending_in(place.pending.0))
}

fn bars(
    device: &dyn Device,
    snapshot: &Snapshot,
    regions: &[device::Region; 6],
    msix: Option<&MsixPlace>,
) -> Result<(Vec<Bar>, Vec<Mapping>), VfioError> {
    let mut mappings = Vec::new();
    let mut bars = Vec::new();
    for plan in layout::plan(snapshot.bars(), regions, msix) {
        let mut regions = Vec::new();
        for (offset, length) in plan.mapped {
            let mapping = device
                .map(plan.index.into(), offset, length)
                .map_err(|source| VfioError::Host { step: "map a BAR", source })?;
            let host_address = mapping.address();
            regions.push(Region::Mapped { offset, length, host_address, read_only: false });
            mappings.push(mapping);
        }
        let (size, is_64bit, prefetchable) = (plan.size, plan.is_64bit, plan.prefetchable);
        bars.push(Bar { index: plan.index, size, is_64bit, prefetchable, regions });
    }
    Ok((bars, mappings))
}

/// Writes the real command register: of `guest`'s bits those that are its business, and memory space always.
fn set_command(device: &dyn Device, guest: u16) -> io::Result<()> {
    let command = config::MEMORY | guest & (config::MASTER | config::INTX_DISABLE);
    device.write(device::CONFIG, config::COMMAND.into(), &command.to_le_bytes())
}

fn report(what: &str, result: io::Result<()>) {
    if let Err(e) = result
        && REFUSALS.allows()
    {
        tracing::warn!("{what} of a passed function: {e}");
    }
}

impl PciFunction for VfioFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let config = self.config.lock();
        config.read(offset, data);
        for own in config.own(offset, data.len()) {
            let at = u64::from(offset) + own.start as u64;
            report("vendor registers", self.device.read(device::CONFIG, at, &mut data[own]));
        }
        let status = usize::from(config::STATUS).wrapping_sub(offset.into());
        if self.interrupts.has_line()
            && let Some(byte) = data.get_mut(status)
        {
            // Drivers that share a pin ask whether it was theirs (PCI Local Bus 3.0 §6.2.3, interrupt status).
            let mut now = [0];
            report("status register", self.device.read(device::CONFIG, config::STATUS.into(), &mut now));
            *byte |= now[0] & config::STATUS_INTERRUPT;
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffects {
        let mut config = self.config.lock();
        for own in config.own(offset, data.len()) {
            let at = u64::from(offset) + own.start as u64;
            report("vendor registers", self.device.write(device::CONFIG, at, &data[own]));
        }
        let (mut moved, effects) = config.write(offset, data);
        for effect in effects {
            self.apply(&mut config, effect, &mut moved);
        }
        moved
    }

    fn bars(&self) -> &[Bar] {
        &self.bars
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match self.emulated(bar, offset) {
            Some((msix, Structure::Table, offset)) => return msix.read_table(offset, data),
            Some((msix, Structure::Pending, offset)) => return msix.read_pending(offset, data),
            None => self.inside(bar, offset, data.len())?,
        }
        self.device.read(bar.into(), offset, data).map_err(|_| AccessError::NoRegister(offset))
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match self.emulated(bar, offset) {
            Some((msix, Structure::Table, offset)) => return msix.write_table(offset, data),
            // Read-only (PCI Local Bus 3.0 §6.8.2.9).
            Some((_, Structure::Pending, _)) => return Ok(()),
            None => self.inside(bar, offset, data.len())?,
        }
        self.device.write(bar.into(), offset, data).map_err(|_| AccessError::NoRegister(offset))
    }

    fn place_bar(&self, bar: u8, address: u64) {
        self.config.lock().place_bar(bar, address);
    }

    fn removed(&self) {
        let config = self.config.lock();
        self.interrupts.stop();
        // Before the reset, so that DMA ends even where there is none.
        report("command register", set_command(self.device.as_ref(), 0));
        if self.device.can_reset() {
            report("reset", self.device.reset());
        }
        drop(config);
    }
}
