//! COM1, a 16550A behind eight ports: the kernel's log goes out here. Nothing comes in.

use std::io;
use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use vm_superio::Trigger;

use crate::bus::AccessError;
use crate::bus::BusDevice;
use crate::ioapic::IoApic;

/// The port. Its output goes to a sink that must neither block for long nor fail for good.
pub struct Serial(Mutex<Uart>);

type Uart = vm_superio::Serial<Line, vm_superio::serial::NoEvents, Box<dyn Write + Send>>;

impl Serial {
    /// Interrupts on I/O APIC pin `pin`.
    pub fn new(sink: Box<dyn Write + Send>, ioapic: Arc<IoApic>, pin: u32) -> Self {
        Self(Mutex::new(vm_superio::Serial::new(Line { ioapic, pin }, sink)))
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
