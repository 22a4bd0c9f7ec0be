//! A passed function's interrupts: the kernel signals eventfds, each of which is routed as the guest says.
//! A function that knows no messages has its pin wired to the I/O APIC; one that does is shown without a pin.
//!
//! Of the three kinds at most one is connected at a time (PCI Local Bus 3.0 §6.8.2: a driver enables one of
//! them), and connecting is the kernel's moment to enable it in the function. MSI-X is connected with all its
//! vectors at once: on a kernel before 6.5 a further one could be had only by turning off those in use, and
//! losing what they signal meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::Weak;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::config::MsiState;
use super::device::Device;
use super::device::Interrupt;
use crate::ioapic::IoApic;
use crate::ioapic::LevelSource;
use crate::log_limit::LogLimit;
use crate::pci::msix::Msix;
use crate::platform::MsiMessage;
use crate::platform::MsiVector;

/// Whatever fails here, the guest can make fail again.
static REFUSALS: LogLimit = LogLimit::new();

/// The interrupts of one function. Lock order: the kind that is connected, then MSI-X.
pub(super) struct Interrupts {
    device: Arc<dyn Device>,
    pub(super) msix: Option<Msix>,
    /// One a message.
    msi: Vec<Arc<dyn MsiVector>>,
    /// Of a function that has nothing better.
    line: Option<Line>,
    connected: Mutex<Option<Interrupt>>,
}

/// A pin of the I/O APIC, and what is told when an interrupt of it ends.
pub(super) struct Line {
    pin: Arc<dyn MsiVector>,
    _unmasks: Arc<Unmasks>,
}

/// The kernel masks the function's pin each time it signals. At the end of the interrupt it may signal again, and
/// does at once if the function still asks for attention.
struct Unmasks(Arc<dyn Device>);

impl LevelSource for Unmasks {
    fn ended(&self) {
        report("the pin of a passed function", self.0.unmask_intx());
    }
}

impl Line {
    /// Wires a function to a pin.
    pub(super) fn new(device: Arc<dyn Device>, ioapic: &IoApic, pin: u32) -> Option<Self> {
        let unmasks = Arc::new(Unmasks(device));
        let weak: Weak<dyn LevelSource> = Arc::downgrade(&unmasks) as _;
        Some(Self { pin: ioapic.wire(pin, weak)?, _unmasks: unmasks })
    }
}

impl Interrupts {
    /// None connected but the pin, if there is one.
    pub(super) fn new(
        device: Arc<dyn Device>,
        msix: Option<Msix>,
        msi: Vec<Arc<dyn MsiVector>>,
        line: Option<Line>,
    ) -> io::Result<Self> {
        let mut connected = None;
        if let Some(line) = &line {
            device.connect(Interrupt::Intx, &[line.pin.eventfd()])?;
            connected = Some(Interrupt::Intx);
        }
        Ok(Self { device, msix, msi, line, connected: Mutex::new(connected) })
    }

    /// Whether the pin is what it interrupts by.
    pub(super) fn has_line(&self) -> bool {
        self.line.is_some()
    }

    /// The driver wrote MSI-X's message control.
    pub(super) fn set_msix(&self, control: u16) {
        let Some(msix) = &self.msix else { return };
        let mut connected = self.connected.lock();
        msix.set_control(control);
        let on = *connected == Some(Interrupt::Msix);
        match msix.is_enabled() {
            true if !on => msix.with_events(|events| self.switch(&mut connected, Interrupt::Msix, events)),
            false if on => self.end(&mut connected),
            _ => {}
        }
    }

    /// The driver wrote to MSI.
    pub(super) fn set_msi(&self, state: MsiState) {
        let mut connected = self.connected.lock();
        let on = *connected == Some(Interrupt::Msi);
        if state.messages == 0 {
            if on {
                self.end(&mut connected);
            }
            self.msi.iter().for_each(|vector| report("MSI", vector.route(None)));
            return;
        }
        let used = &self.msi[..usize::from(state.messages).min(self.msi.len())];
        for (number, vector) in (0..).zip(used) {
            // The function puts the number of the message into the low bits (PCI Local Bus 3.0 §6.8.1.6).
            let data = state.data & !(state.messages - 1) | number;
            report("MSI", vector.route(Some(MsiMessage { address: state.address, data: data.into() })));
        }
        if !on && !used.is_empty() {
            let events: Vec<&EventFd> = used.iter().map(|vector| vector.eventfd()).collect();
            self.switch(&mut connected, Interrupt::Msi, &events);
        }
    }

    /// No message is connected any more, and nothing is pending: as after a reset of the function. Its pin stays
    /// where it is.
    pub(super) fn reset(&self) {
        let mut connected = self.connected.lock();
        if *connected != Some(Interrupt::Intx) {
            self.end(&mut connected);
        }
        if let Some(msix) = &self.msix {
            msix.reset();
        }
        for vector in &self.msi {
            report("MSI", vector.route(None));
            // An empty eventfd is what is wanted.
            let _ = vector.eventfd().read();
        }
    }

    /// Nothing of the function is connected any more.
    pub(super) fn stop(&self) {
        self.reset();
        self.end(&mut self.connected.lock());
    }

    fn switch(&self, connected: &mut Option<Interrupt>, kind: Interrupt, events: &[&EventFd]) {
        self.end(connected);
        match self.device.connect(kind, events) {
            Ok(()) => *connected = Some(kind),
            Err(e) => report(&format!("{} interrupts of a passed function ({kind:?})", events.len()), Err(e)),
        }
    }

    fn end(&self, connected: &mut Option<Interrupt>) {
        if let Some(kind) = connected.take() {
            report("an interrupt of a passed function", self.device.disconnect(kind));
        }
    }
}

/// The guest sees a device that does not interrupt; whoever reads the log sees why.
fn report(what: &str, result: io::Result<()>) {
    if let Err(e) = result
        && REFUSALS.allows()
    {
        tracing::warn!("{what}: {e}");
    }
}
