//! Configuration space as the guest sees it (PCI Local Bus 3.0 §6.1, PCI Express 5.0 §7.5).
//!
//! A header of ours with the function's identity, and of its capabilities those that can be honoured, at the
//! offsets they have:
//!
//! | capability | is |
//! |---|---|
//! | MSI-X, MSI | emulated; MSI without masks, which are optional |
//! | power management | emulated: the function stays in D0 |
//! | PCI Express | emulated: an integrated endpoint without a link; a function level reset is asked of the kernel |
//! | vendor specific | the function's own, read and written through |
//! | any other | hidden, as are the extended ones |
//!
//! A write yields what is to be done about it, as values.

use std::ops::Range;

use super::layout::MsixPlace;
use crate::pci::config_space::ConfigSpace;
use crate::pci::config_space::Identity;
use crate::pci::function::Bar;
use crate::pci::function::ConfigEffects;
use crate::pci::msix;

/// Bytes of configuration space that are looked at.
pub(super) const SIZE: usize = 256;

/// Registers.
pub(super) const COMMAND: u16 = 0x04;
pub(super) const STATUS: u16 = 0x06;
const BARS: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_PIN: usize = 0x3d;
const FIRST_CAPABILITY: u8 = 0x40;

/// Command register.
pub(super) const MEMORY: u16 = 1 << 1;
pub(super) const MASTER: u16 = 1 << 2;
pub(super) const INTX_DISABLE: u16 = 1 << 10;
/// Status register.
pub(super) const STATUS_INTERRUPT: u8 = 1 << 3;

const POWER: u8 = 0x01;
const MSI: u8 = 0x05;
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;

/// Power management (PCI PM 1.2 §3.2): the version of PMC, and in PMCSR the state and "no soft reset".
const PMC_VERSION: u16 = 7;
const PMCSR_STATE: u16 = 3;
const PMCSR_NO_SOFT_RESET: u16 = 1 << 3;
/// Message control of MSI (PCI Local Bus 3.0 §6.8.1.3).
const MSI_ENABLE: u16 = 1;
const MSI_ENABLED_COUNT: u16 = 7 << 4;
const MSI_64BIT: u16 = 1 << 7;
const MSI_MASKS: u16 = 1 << 8;
/// PCI Express capability (PCI Express 5.0 §7.5.3).
const EXPRESS_SIZE: usize = 0x3c;
const EXPRESS_TYPE: u16 = 0xf << 4;
const EXPRESS_INTEGRATED: u16 = 9 << 4;
const EXPRESS_VERSION: u16 = 0xf;
const DEVICE_CAPABILITIES: usize = 4;
const DEVICE_CAPABILITIES_RESET: u32 = 1 << 28;
const DEVICE_CONTROL: usize = 8;
const DEVICE_CONTROL_RESET: u16 = 1 << 15;

/// The function's own first 256 bytes, as read when it was opened.
pub(super) struct Snapshot(pub(super) [u8; SIZE]);

impl Snapshot {
    fn u16(&self, at: usize) -> u16 {
        match self.0.get(at..at + 2) {
            Some(bytes) => u16::from_le_bytes(bytes.try_into().expect("two bytes")),
            None => 0,
        }
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn identity(&self) -> Identity {
        Identity {
            vendor: self.u16(0x00),
            device: self.u16(0x02),
            revision: self.0[0x08],
            class: self.u32(0x08) >> 8,
            subsystem_vendor: self.u16(0x2c),
            subsystem: self.u16(0x2e),
        }
    }

    /// A bridge or a CardBus adapter has another header.
    pub(super) fn is_endpoint(&self) -> bool {
        self.0[0x0e] & 0x7f == 0
    }

    pub(super) fn bars(&self) -> [u32; 6] {
        std::array::from_fn(|i| self.u32(BARS + 4 * i))
    }

    pub(super) fn has_pin(&self) -> bool {
        self.0[INTERRUPT_PIN] != 0
    }

    /// Id and offset of each capability. A list that leads astray ends there.
    fn capabilities(&self) -> Vec<(u8, u8)> {
        let mut found = Vec::new();
        if self.u16(STATUS.into()) & 1 << 4 == 0 {
            return found;
        }
        let mut at = self.0[CAPABILITIES] & !3;
        while at >= FIRST_CAPABILITY && !found.iter().any(|&(_, offset)| offset == at) {
            found.push((self.0[usize::from(at)], at));
            at = self.0[usize::from(at) + 1] & !3;
        }
        found
    }

    /// Where the MSI-X structures are.
    pub(super) fn msix(&self) -> Option<MsixPlace> {
        let (_, at) = self.capabilities().into_iter().find(|&(id, _)| id == msix::CAPABILITY)?;
        let at = usize::from(at);
        let place = |register: u32| (register.to_le_bytes()[0] & 7, u64::from(register & !7));
        let vectors = (self.u16(at + 2) & 0x7ff) + 1;
        Some(MsixPlace { vectors, table: place(self.u32(at + 4)), pending: place(self.u32(at + 8)) })
    }

    /// How many messages it can send by MSI; 0 if it has none.
    pub(super) fn msi_messages(&self) -> u16 {
        let found = self.capabilities().into_iter().find(|&(id, _)| id == MSI);
        found.map_or(0, |(_, at)| 1 << ((self.u16(usize::from(at) + 2) >> 1) & 7).min(5))
    }
}

/// What the driver has made of MSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct MsiState {
    /// Messages it wants; 0 while disabled.
    pub(super) messages: u16,
    pub(super) address: u64,
    pub(super) data: u16,
}

/// What a write asks for besides what it did to BARs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// The command register is this now.
    Command(u16),
    /// MSI is this now.
    Msi(MsiState),
    /// MSI-X's message control is this now.
    MsixControl(u16),
    /// A function level reset.
    Reset,
}

/// What of a function can be honoured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    /// It can be reset alone.
    pub(super) reset: bool,
    /// Its pin is wired to something.
    pub(super) pin: bool,
    /// Its MSI-X structures are where they can be.
    pub(super) msix: bool,
}

/// The space.
pub(super) struct Config {
    space: ConfigSpace,
    msi: Option<(u16, bool)>,
    msix: Option<u16>,
    express: Option<u16>,
    /// Bytes that are the function's own.
    own: Vec<Range<u16>>,
}

impl Config {
    /// As the function is, as far as it can be had.
    pub(super) fn new(from: &Snapshot, bars: &[Bar], offer: Offer) -> Self {
        let mut space = ConfigSpace::new(from.identity(), bars);
        if offer.pin {
            space.set_interrupt_pin(1);
        }
        let mut config = Self { space, msi: None, msix: None, express: None, own: Vec::new() };
        for (id, offset) in from.capabilities() {
            config.show(from, id, offset, offer);
        }
        config
    }

    /// Shows a capability, unless it is one of those that are hidden or it does not fit into the space.
    fn show(&mut self, from: &Snapshot, id: u8, offset: u8, offer: Offer) {
        let at = usize::from(offset);
        let (body, writable) = match id {
            POWER => {
                let mut body = [0; 6];
                body[..2].copy_from_slice(&(from.u16(at + 2) & PMC_VERSION).to_le_bytes());
                body[2..4].copy_from_slice(&PMCSR_NO_SOFT_RESET.to_le_bytes());
                let mut writable = [0; 6];
                writable[2..4].copy_from_slice(&PMCSR_STATE.to_le_bytes());
                (body.to_vec(), writable.to_vec())
            }
            MSI => msi(from.u16(at + 2) & !MSI_MASKS),
            msix::CAPABILITY if offer.msix => msix_body(from, at),
            EXPRESS => express(from, at, offer.reset),
            VENDOR => {
                let length = usize::from(from.0.get(at + 2).copied().unwrap_or(0));
                if length < 3 {
                    return;
                }
                (vec![0; length - 2], Vec::new())
            }
            _ => return,
        };
        if at + 2 + body.len() > SIZE {
            return;
        }
        self.space.add_capability_at(offset, id, &body, &writable);
        let start = u16::from(offset);
        match id {
            MSI => self.msi = Some((start, from.u16(at + 2) & MSI_64BIT != 0)),
            msix::CAPABILITY => self.msix = Some(start),
            EXPRESS => self.express = Some(start),
            VENDOR => {
                let length = u16::try_from(body.len()).expect("a capability fits into 256 bytes");
                self.own.push(start + 2..start + 2 + length);
            }
            _ => {}
        }
    }

    /// Reads what is ours. What is the function's own ([`Config::own`]) is the caller's to fill in.
    pub(super) fn read(&self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    /// The parts of an access that are the function's own, as ranges of the access.
    pub(super) fn own(&self, offset: u16, width: usize) -> impl Iterator<Item = Range<usize>> {
        let end = u16::try_from(width).map_or(u16::MAX, |width| offset.saturating_add(width));
        self.own.iter().filter_map(move |own| {
            let (from, to) = (own.start.max(offset), own.end.min(end));
            (from < to).then(|| usize::from(from - offset)..usize::from(to - offset))
        })
    }

    /// Writes what is ours.
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) -> (ConfigEffects, Vec<Effect>) {
        let moved = self.space.write(offset, data);
        let end = usize::from(offset) + data.len();
        let touches = |start: u16, length: usize| {
            usize::from(offset) < usize::from(start) + length && usize::from(start) < end
        };
        let mut effects = Vec::new();
        if touches(COMMAND, 2) {
            effects.push(Effect::Command(self.u16(COMMAND)));
        }
        if self.msi.is_some_and(|(at, _)| touches(at, 14)) {
            effects.push(Effect::Msi(self.msi_state()));
        }
        if let Some(at) = self.msix.filter(|&at| touches(at + 2, 2)) {
            effects.push(Effect::MsixControl(self.u16(at + 2)));
        }
        if let Some(at) = self.express
            && self.u16(at + 8) & DEVICE_CONTROL_RESET != 0
        {
            // The bit reads as zero (PCI Express 5.0 §7.5.3.4).
            self.set_u16(at + 8, self.u16(at + 8) & !DEVICE_CONTROL_RESET);
            effects.push(Effect::Reset);
        }
        (moved, effects)
    }

    /// What a reset of the function does: nothing is decoded, no interrupt is enabled. BARs stay where they are,
    /// which a driver that restores them does not notice.
    pub(super) fn reset(&mut self) -> ConfigEffects {
        if let Some((at, _)) = self.msi {
            self.set_u16(at + 2, 0);
        }
        if let Some(at) = self.msix {
            self.set_u16(at + 2, 0);
        }
        if let Some(at) = self.express {
            self.set_u16(at + 8, 0);
        }
        self.space.write(COMMAND, &[0, 0])
    }

    pub(super) fn place_bar(&mut self, bar: u8, address: u64) {
        self.space.place_bar(bar, address);
    }

    fn msi_state(&self) -> MsiState {
        let Some((at, is_64bit)) = self.msi else { return MsiState::default() };
        let control = self.u16(at + 2);
        if control & MSI_ENABLE == 0 {
            return MsiState::default();
        }
        let low = u64::from(self.u16(at + 4)) | u64::from(self.u16(at + 6)) << 16;
        let high = u64::from(self.u16(at + 8)) | u64::from(self.u16(at + 10)) << 16;
        // A driver may ask for more messages than there are: what is not there is not raised.
        let messages = 1 << ((control & MSI_ENABLED_COUNT) >> 4).min(5);
        match is_64bit {
            true => MsiState { messages, address: high << 32 | low, data: self.u16(at + 12) },
            false => MsiState { messages, address: low, data: self.u16(at + 8) },
        }
    }

    fn u16(&self, at: u16) -> u16 {
        let mut bytes = [0; 2];
        self.space.read(at, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Sets writable bits, as the driver would.
    fn set_u16(&mut self, at: u16, value: u16) {
        // None of the registers this is used for has to do with a BAR.
        let _ = self.space.write(at, &value.to_le_bytes());
    }
}

/// MSI with this message control, disabled: its body and what of it the driver may write.
fn msi(control: u16) -> (Vec<u8>, Vec<u8>) {
    let length = if control & MSI_64BIT != 0 { 12 } else { 8 };
    let (mut body, mut writable) = (vec![0; length], vec![0xff; length]);
    body[..2].copy_from_slice(&(control & !(MSI_ENABLE | MSI_ENABLED_COUNT)).to_le_bytes());
    writable[..2].copy_from_slice(&(MSI_ENABLE | MSI_ENABLED_COUNT).to_le_bytes());
    // The address is a multiple of four.
    writable[2] = 0xfc;
    (body, writable)
}

/// MSI-X as it is, disabled.
fn msix_body(from: &Snapshot, at: usize) -> (Vec<u8>, Vec<u8>) {
    let mut body = vec![0; 10];
    for (i, byte) in body.iter_mut().enumerate() {
        *byte = from.0.get(at + 2 + i).copied().unwrap_or(0);
    }
    body[..2].copy_from_slice(&(from.u16(at + 2) & 0x7ff).to_le_bytes());
    let mut writable = vec![0; 10];
    writable[..2].copy_from_slice(&msix::CONTROL_WRITABLE.to_le_bytes());
    (body, writable)
}

/// An integrated endpoint: there is no port above it in the guest, and so no link.
fn express(from: &Snapshot, at: usize, can_reset: bool) -> (Vec<u8>, Vec<u8>) {
    let (mut body, mut writable) = (vec![0; EXPRESS_SIZE - 2], vec![0; EXPRESS_SIZE - 2]);
    let flags = from.u16(at + 2);
    // Whatever kind of endpoint it is (0, legacy 1), it has become an integrated one (9).
    let flags = flags & !EXPRESS_TYPE & (EXPRESS_VERSION | 0x3e00) | EXPRESS_INTEGRATED;
    body[..2].copy_from_slice(&flags.to_le_bytes());
    let mut capabilities = from.u32(at + DEVICE_CAPABILITIES) & !DEVICE_CAPABILITIES_RESET;
    if can_reset {
        capabilities |= DEVICE_CAPABILITIES_RESET;
    }
    body[DEVICE_CAPABILITIES - 2..][..4].copy_from_slice(&capabilities.to_le_bytes());
    // What the driver sets here is remembered and has no effect: payload sizes are the host's to agree on.
    let control = 0x7fff | if can_reset { DEVICE_CONTROL_RESET } else { 0 };
    writable[DEVICE_CONTROL - 2..][..2].copy_from_slice(&control.to_le_bytes());
    (body, writable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A function with every capability there is a rule for, and one to be hidden (vital product data).
    fn snapshot() -> Snapshot {
        let mut raw = [0; SIZE];
        raw[..4].copy_from_slice(&[0x36, 0x1b, 0x10, 0x00]);
        raw[0x06] = 0x10;
        raw[0x08..0x0c].copy_from_slice(&[2, 0x02, 0x08, 0x01]);
        raw[0x34] = 0x40;
        raw[0x3d] = 1;
        raw[0x40..0x48].copy_from_slice(&[0x01, 0x50, 0x03, 0xfe, 0x00, 0x01, 0, 0]);
        // MSI: 64 bits, masks, 4 messages, enabled by whoever had it before.
        raw[0x50..0x54].copy_from_slice(&[0x05, 0x70, 0x85, 0x01]);
        raw[0x70..0x7c].copy_from_slice(&[0x11, 0x80, 0x40, 0x80, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
        raw[0x80..0x84].copy_from_slice(&[0x10, 0xc0, 0x02, 0x00]);
        raw[0x84..0x88].copy_from_slice(&0x1000_8001u32.to_le_bytes());
        raw[0x8c..0x90].copy_from_slice(&0x0007_fc11u32.to_le_bytes());
        raw[0xc0..0xc8].copy_from_slice(&[0x09, 0xd0, 0x08, 1, 2, 3, 4, 5]);
        raw[0xd0..0xd4].copy_from_slice(&[0x03, 0x00, 0x00, 0x80]);
        Snapshot(raw)
    }

    fn config() -> Config {
        Config::new(&snapshot(), &[], Offer { reset: true, pin: true, msix: true })
    }

    fn read(config: &Config, offset: u16) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn capabilities_keep_their_places_and_the_rest_is_hidden() {
        let config = config();
        let (mut at, mut seen) = (read(&config, 0x34) & 0xff, Vec::new());
        while at != 0 {
            let header = read(&config, u16::try_from(at).unwrap());
            seen.push((header & 0xff, at));
            at = header >> 8 & 0xff;
        }
        assert_eq!(seen, [(0x01, 0x40), (0x05, 0x50), (0x11, 0x70), (0x10, 0x80), (0x09, 0xc0)]);
        assert_eq!(read(&config, 0x00), 0x0010_1b36);
        assert_eq!(read(&config, 0x08), 0x0108_0202);
        assert_eq!(read(&config, 0x30), 0, "no option ROM");
        assert_eq!(read(&config, 0x3c), 0x100);
        assert_eq!(read(&config, 0x100), 0, "no extended capabilities");
    }

    #[test]
    fn power_is_always_on_and_the_link_is_gone() {
        let mut config = config();
        assert_eq!(read(&config, 0x40) >> 16, 3, "no D1, no D2, no PME");
        config.write(0x44, &[3, 0]);
        assert_eq!(read(&config, 0x44) & 0xffff, 0xb, "D3, as far as the driver is concerned");
        assert_eq!(read(&config, 0x80) >> 16, 0x92, "an integrated endpoint");
        assert_eq!(read(&config, 0x8c), 0, "no link");
    }

    #[test]
    fn msi_is_shown_disabled_and_without_masks() {
        let mut config = config();
        assert_eq!(read(&config, 0x50) >> 16, 0x84);
        config.write(0x54, &0xfee0_1003u32.to_le_bytes());
        config.write(0x58, &1u32.to_le_bytes());
        config.write(0x5c, &[0x41, 0]);
        let (_, effects) = config.write(0x52, &[0x11, 0]);
        let state = MsiState { messages: 2, address: 0x1_fee0_1000, data: 0x41 };
        assert_eq!(effects, [Effect::Msi(state)]);
        let (_, effects) = config.write(0x52, &[0, 0]);
        assert_eq!(effects, [Effect::Msi(MsiState::default())]);
        assert_eq!(snapshot().msi_messages(), 4);
    }

    #[test]
    fn msix_is_shown_disabled_with_its_own_table() {
        let place = MsixPlace { vectors: 65, table: (0, 0x2000), pending: (0, 0x3000) };
        assert_eq!(snapshot().msix(), Some(place));
        let mut config = config();
        assert_eq!(read(&config, 0x70) >> 16, 0x40);
        let (_, effects) = config.write(0x72, &[0xff, 0xff]);
        assert_eq!(effects, [Effect::MsixControl(0xc040)]);
    }

    #[test]
    fn a_function_level_reset_is_asked_for_once() {
        let mut config = config();
        config.write(0x04, &[0x06, 0x00]);
        config.write(0x72, &[0, 0x80]);
        let (_, effects) = config.write(0x88, &[0, 0x80]);
        assert_eq!(effects, [Effect::Reset]);
        assert_eq!(config.write(0x88, &[0, 0]).1, []);
        config.reset();
        assert_eq!((config.u16(COMMAND), read(&config, 0x70) >> 16), (0, 0x40));
        let mut without = Config::new(&snapshot(), &[], Offer { reset: false, pin: false, msix: false });
        assert_eq!(read(&without, 0x84) & 0x1000_0000, 0);
        assert_eq!(without.write(0x88, &[0, 0x80]).1, []);
    }

    #[test]
    fn vendor_bytes_are_the_functions_own() {
        let config = config();
        let own = |offset, width| config.own(offset, width).map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(own(0xc0, 4), [(2, 4)], "not its id and the way on");
        assert_eq!(own(0xc4, 4), [(0, 4)]);
        assert_eq!(own(0xc8, 4), []);
    }

    #[test]
    fn a_list_that_bites_its_tail_ends() {
        let mut raw = snapshot();
        raw.0[0xc1] = 0x40;
        assert_eq!(raw.capabilities().len(), 5);
        raw.0[0x41] = 0x08;
        assert_eq!(raw.capabilities(), [(1, 0x40)]);
    }

    proptest! {
        #[test]
        fn any_function_is_shown_and_survives_any_write(
            raw in prop::collection::vec(any::<u8>(), SIZE),
            writes in prop::collection::vec((0u16..4096, prop::collection::vec(any::<u8>(), 1..5)), 0..64),
        ) {
            let snapshot = Snapshot(raw.try_into().unwrap());
            let mut config = Config::new(&snapshot, &[], Offer { reset: true, pin: snapshot.has_pin(), msix: true });
            let identity = read(&config, 0);
            for (offset, data) in writes {
                let (moved, effects) = config.write(offset, &data);
                prop_assert_eq!(moved.moved, []);
                prop_assert!(effects.len() <= 4);
                config.own(offset, data.len()).for_each(|range| assert!(range.end <= data.len()));
            }
            prop_assert_eq!(read(&config, 0), identity);
        }
    }
}
