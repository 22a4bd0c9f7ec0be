//! The I/O APIC (Intel 82093AA), 24 pins. The hypervisor keeps the local APICs; this turns a pin into the
//! message its redirection entry describes.
//!
//! Lock order: the registers, then a pin's vector.

use std::io;
use std::sync::Arc;
use std::sync::Weak;

use parking_lot::Mutex;
use serde::Deserialize;
use serde::Serialize;

use crate::bus::AccessError;
use crate::bus::BusDevice;
use crate::log_limit::LogLimit;
use crate::platform::Interrupts;
use crate::platform::MsiMessage;
use crate::platform::MsiVector;

const PINS: u8 = 24;
/// Memory-mapped registers (82093AA §3.1).
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Indexed registers (82093AA §3.2).
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const REDIRECTION: u8 = 0x10;
/// Version 0x11, and the number of the last entry.
const VERSION_VALUE: u32 = 0x11 | ((PINS as u32 - 1) << 16);

/// What of the identification can be written.
const ID_WRITABLE: u32 = 0x0f00_0000;

/// Bits of a redirection entry (82093AA §3.2.4).
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const READ_ONLY: u64 = REMOTE_IRR | DELIVERY_STATUS;

/// The device; also what raises its pins.
pub struct IoApic(Mutex<Registers>);

/// The registers as a plain value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    select: u8,
    id: u32,
    /// Redirection entry, and whether the line is held active.
    pins: Vec<(u64, bool)>,
}

struct Registers {
    select: u8,
    id: u32,
    pins: Vec<Pin>,
}

/// Drives a pin from outside this process, by its vector's eventfd: a device that masks its own line each time it
/// signals, and must be told when it may signal again.
pub trait LevelSource: Send + Sync {
    /// An interrupt of the pin has ended. Called on a vCPU thread, whoever of those on the pin had raised it.
    fn ended(&self);
}

struct Pin {
    entry: u64,
    /// The line is held active (level-triggered).
    active: bool,
    vector: Arc<dyn MsiVector>,
    sources: Vec<Weak<dyn LevelSource>>,
}

impl IoApic {
    /// All pins masked.
    pub fn new(interrupts: &dyn Interrupts) -> io::Result<Self> {
        let pin = |n| {
            Ok(Pin { entry: MASKED, active: false, vector: interrupts.ioapic_pin(n)?, sources: Vec::new() })
        };
        let pins = (0..PINS).map(pin).collect::<io::Result<_>>()?;
        Ok(Self(Mutex::new(Registers { select: 0, id: 0, pins })))
    }

    /// The registers as they are.
    pub fn save(&self) -> IoApicState {
        let registers = self.0.lock();
        let pin = |pin: &Pin| (pin.entry, pin.active);
        let pins = registers.pins.iter().map(pin).collect();
        IoApicState { select: registers.select, id: registers.id, pins }
    }

    /// Takes over what [`IoApic::save`] gave. False, and nothing changed, if there are other pins.
    pub fn restore(&self, state: &IoApicState) -> bool {
        let mut registers = self.0.lock();
        if state.pins.len() != registers.pins.len() {
            return false;
        }
        (registers.select, registers.id) = (state.select, state.id & ID_WRITABLE);
        for (pin, &(entry, active)) in registers.pins.iter_mut().zip(&state.pins) {
            // The line first: what it has raised already is in the entry.
            (pin.active, pin.entry) = (active, entry & READ_ONLY);
            pin.write(entry);
        }
        true
    }

    /// An edge on a pin. A masked pin loses it (82093AA §3.2.4, interrupt mask). Unknown pins are ignored.
    pub fn pulse(&self, pin: u32) -> io::Result<()> {
        let registers = self.0.lock();
        match usize::try_from(pin).ok().and_then(|pin| registers.pins.get(pin)) {
            Some(pin) if pin.entry & MASKED == 0 => pin.vector.trigger(),
            _ => Ok(()),
        }
    }

    /// Sets the level of a pin; an active level-triggered line interrupts again after each end of interrupt.
    pub fn set_level(&self, pin: u32, active: bool) -> io::Result<()> {
        let mut registers = self.0.lock();
        match usize::try_from(pin).ok().and_then(|pin| registers.pins.get_mut(pin)) {
            Some(pin) => {
                pin.active = active;
                pin.deliver_level()
            }
            None => Ok(()),
        }
    }

    /// Puts `source` on a pin as long as it lives; returns what it signals. `None` if there is no such pin.
    ///
    /// While the pin is masked or edge-triggered nothing ends, so what was signalled waits in the eventfd.
    pub fn wire(&self, pin: u32, source: Weak<dyn LevelSource>) -> Option<Arc<dyn MsiVector>> {
        let mut registers = self.0.lock();
        let pin = registers.pins.get_mut(usize::try_from(pin).ok()?)?;
        pin.sources.retain(|source| source.strong_count() > 0);
        pin.sources.push(source);
        Some(pin.vector.clone())
    }

    /// A local APIC has ended the level-triggered interrupt `vector`.
    pub fn eoi(&self, vector: u8) {
        let mut sources = Vec::new();
        for pin in &mut self.0.lock().pins {
            if pin.entry & LEVEL != 0 && pin.entry & 0xff == u64::from(vector) {
                pin.entry &= !REMOTE_IRR;
                report(pin.deliver_level());
                sources.extend(pin.sources.iter().filter_map(Weak::upgrade));
            }
        }
        sources.iter().for_each(|source| source.ended());
    }
}

impl Pin {
    fn deliver_level(&mut self) -> io::Result<()> {
        if self.active && self.entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL {
            self.entry |= REMOTE_IRR;
            self.vector.trigger()?;
        }
        Ok(())
    }

    fn write(&mut self, entry: u64) {
        self.entry = (entry & !READ_ONLY) | (self.entry & READ_ONLY);
        if entry & LEVEL == 0 {
            self.entry &= !REMOTE_IRR;
        }
        let message = (self.entry & MASKED == 0).then(|| self.message());
        report(self.vector.route(message));
        report(self.deliver_level());
    }

    /// The entry as the message a local APIC takes (Intel SDM vol. 3 §11.11).
    fn message(&self) -> MsiMessage {
        let destination = (self.entry >> 56) & 0xff;
        let logical = (self.entry >> 11) & 1;
        let data = (self.entry & 0x7ff) | (self.entry & LEVEL) | (1 << 14);
        MsiMessage {
            address: 0xfee0_0000 | (destination << 12) | (logical << 2),
            data: u32::try_from(data).expect("bits 0 to 15 only"),
        }
    }
}

/// The guest cannot be told that the host refused a route; whoever reads the log can. The message is the guest's,
/// so it can make this happen at will.
fn report(result: io::Result<()>) {
    static REFUSALS: LogLimit = LogLimit::new();
    if let Err(e) = result
        && REFUSALS.allows()
    {
        tracing::warn!("I/O APIC: {e}");
    }
}

impl Registers {
    fn read(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            select => match self.entry(select) {
                Some((pin, 0)) => low(self.pins[pin].entry),
                Some((pin, _)) => low(self.pins[pin].entry >> 32),
                None => 0,
            },
        }
    }

    fn write(&mut self, value: u32) {
        if self.select == ID {
            self.id = value & ID_WRITABLE;
        } else if let Some((pin, half)) = self.entry(self.select) {
            let old = self.pins[pin].entry;
            let value = u64::from(value);
            let new =
                if half == 0 { (old & !0xffff_ffff) | value } else { (old & 0xffff_ffff) | (value << 32) };
            self.pins[pin].write(new);
        }
    }

    /// Which half of which pin's entry a register is.
    fn entry(&self, select: u8) -> Option<(usize, u8)> {
        let offset = select.checked_sub(REDIRECTION)?;
        (offset / 2 < PINS).then_some((usize::from(offset / 2), offset % 2))
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).expect("masked to 32 bits")
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let registers = self.0.lock();
        let value = match offset {
            SELECT => u32::from(registers.select),
            WINDOW => registers.read(),
            _ => return Err(AccessError::NoRegister(offset)),
        };
        let width = data.len();
        if width > 4 {
            return Err(AccessError::Width { offset, width });
        }
        data.copy_from_slice(&value.to_le_bytes()[..width]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut registers = self.0.lock();
        match (offset, data) {
            (SELECT, [select, ..]) => registers.select = *select,
            (WINDOW, &[a, b, c, d]) => registers.write(u32::from_le_bytes([a, b, c, d])),
            (WINDOW, _) => return Err(AccessError::Width { offset, width: data.len() }),
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;
    use vmm_sys_util::eventfd::EventFd;

    struct Recorded {
        routed: Mutex<Option<MsiMessage>>,
        triggered: AtomicUsize,
        event: EventFd,
    }

    impl MsiVector for Recorded {
        fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
            *self.routed.lock() = message;
            Ok(())
        }
        fn trigger(&self) -> io::Result<()> {
            self.triggered.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        fn eventfd(&self) -> &EventFd {
            &self.event
        }
    }

    #[derive(Default)]
    struct Pins(Mutex<Vec<Arc<Recorded>>>);

    impl Interrupts for Pins {
        fn vectors(&self, _: u16) -> io::Result<Vec<Arc<dyn MsiVector>>> {
            unreachable!("the I/O APIC asks for pins")
        }
        fn ioapic_pin(&self, _: u8) -> io::Result<Arc<dyn MsiVector>> {
            let pin = Recorded {
                routed: Mutex::new(None),
                triggered: AtomicUsize::new(0),
                event: EventFd::new(0)?,
            };
            let pin = Arc::new(pin);
            self.0.lock().push(pin.clone());
            Ok(pin)
        }
    }

    fn set_entry(apic: &IoApic, pin: u8, entry: u64) {
        for (register, half) in [(0x10 + 2 * pin + 1, entry >> 32), (0x10 + 2 * pin, entry)] {
            apic.write(SELECT, &[register, 0, 0, 0]).unwrap();
            apic.write(WINDOW, &low(half & 0xffff_ffff).to_le_bytes()).unwrap();
        }
    }

    #[test]
    fn an_edge_goes_where_the_entry_says() {
        let pins = Pins::default();
        let apic = IoApic::new(&pins).unwrap();
        let pin = pins.0.lock()[4].clone();
        apic.pulse(4).unwrap();
        assert_eq!(pin.triggered.load(Ordering::SeqCst), 0, "masked at reset");
        set_entry(&apic, 4, (2 << 56) | 0x31);
        let message = pin.routed.lock().unwrap();
        assert_eq!(message, MsiMessage { address: 0xfee0_2000, data: 0x4031 });
        apic.pulse(4).unwrap();
        assert_eq!(pin.triggered.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_level_interrupts_again_after_its_end() {
        let pins = Pins::default();
        let apic = IoApic::new(&pins).unwrap();
        let pin = pins.0.lock()[9].clone();
        set_entry(&apic, 9, LEVEL | 0x40);
        apic.set_level(9, true).unwrap();
        apic.set_level(9, true).unwrap();
        assert_eq!(pin.triggered.load(Ordering::SeqCst), 1);
        apic.eoi(0x40);
        assert_eq!(pin.triggered.load(Ordering::SeqCst), 2);
        apic.set_level(9, false).unwrap();
        apic.eoi(0x40);
        assert_eq!(pin.triggered.load(Ordering::SeqCst), 2);
    }

    struct Line(AtomicUsize);

    impl LevelSource for Line {
        fn ended(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_drives_a_pin_hears_of_each_end_as_long_as_it_lives() {
        let apic = IoApic::new(&Pins::default()).unwrap();
        let line = Arc::new(Line(AtomicUsize::new(0)));
        let weak: Weak<dyn LevelSource> = Arc::downgrade(&line) as _;
        assert!(apic.wire(24, weak.clone()).is_none(), "there are 24 pins");
        assert!(apic.wire(16, weak).is_some());
        set_entry(&apic, 16, LEVEL | 0x51);
        apic.eoi(0x51);
        apic.eoi(0x52);
        assert_eq!(line.0.load(Ordering::SeqCst), 1);
        drop(line);
        apic.eoi(0x51);
    }

    #[test]
    fn every_register_takes_any_access() {
        let apic = IoApic::new(&Pins::default()).unwrap();
        for select in 0..=255 {
            apic.write(SELECT, &[select]).unwrap();
            for width in [1, 2, 4, 8] {
                for offset in [0, 1, 4, 0x10, 0x11, 0x20, 0x40, 0xfff] {
                    let _ = apic.write(offset, &vec![0xff; width]);
                    let _ = apic.read(offset, &mut vec![0; width]);
                    apic.write(SELECT, &[select]).unwrap();
                }
            }
        }
    }
}
