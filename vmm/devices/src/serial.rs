//! COM1, a 16550A behind eight ports: the kernel's log goes out here. Nothing comes in.

use std::io;
use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;
use serde::Serialize;
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use crate::bus::AccessError;
use crate::bus::BusDevice;
use crate::ioapic::IoApic;

/// The port. Its output goes to a sink that must neither block for long nor fail for good.
pub struct Serial(Mutex<Uart>);

type Uart = vm_superio::Serial<Line, NoEvents, Box<dyn Write + Send>>;

impl Serial {
    /// Interrupts on I/O APIC pin `pin`.
    pub fn new(sink: Box<dyn Write + Send>, ioapic: Arc<IoApic>, pin: u32) -> Self {
        Self(Mutex::new(vm_superio::Serial::new(Line { ioapic, pin }, sink)))
    }
}

/// The port as a plain value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latches, interrupt enable and identification, line control and status, modem control and status, scratch.
    registers: [u8; 9],
    received: Vec<u8>,
}

impl Serial {
    /// The port as it is.
    pub fn save(&self) -> SerialState {
        let state = self.0.lock().state();
        SerialState {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            received: state.in_buffer,
        }
    }

    /// A port that goes on as one that was saved; `None` if no port was ever so.
    pub fn restored(
        sink: Box<dyn Write + Send>,
        ioapic: Arc<IoApic>,
        pin: u32,
        state: &SerialState,
    ) -> Option<Self> {
        let [low, high, enable, identification, control, line, modem_control, modem, scratch] =
            state.registers;
        let state = vm_superio::SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: control,
            line_status: line,
            modem_control,
            modem_status: modem,
            scratch,
            in_buffer: state.received.clone(),
        };
        let uart = vm_superio::Serial::from_state(&state, Line { ioapic, pin }, NoEvents, sink);
        Some(Self(Mutex::new(uart.ok()?)))
    }
}

struct Line {
    ioapic: Arc<IoApic>,
    pin: u32,
}

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.ioapic.pulse(self.pin)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let (register, [byte]) = (u8::try_from(offset).ok(), data) else {
            return Err(AccessError::Width { offset, width: 0 });
        };
        *byte = self.0.lock().read(register.ok_or(AccessError::NoRegister(offset))?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let width = data.len();
        let &[byte] = data else { return Err(AccessError::Width { offset, width }) };
        let register = u8::try_from(offset).map_err(|_| AccessError::NoRegister(offset))?;
        // A sink that refuses a byte has nothing to tell the guest.
        let _ = self.0.lock().write(register, byte);
        Ok(())
    }
}
