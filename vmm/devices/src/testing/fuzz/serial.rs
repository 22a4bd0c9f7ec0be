//! The serial port's registers, in any order and width.

use std::io;
use std::io::Write;
use std::sync::Arc;

use arbitrary::Arbitrary;
use parking_lot::Mutex;

use super::parse;
use crate::bus::BusDevice;
use crate::ioapic::IoApic;
use crate::serial::Serial;
use crate::testing::FakePlatform;

#[derive(Debug, Arbitrary)]
enum Operation {
    Write { register: u8, byte: u8 },
    WriteMany { register: u64, bytes: Vec<u8> },
    Read { register: u8, width: u8 },
}

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs operations; afterwards a driver that sets the port up prints.
pub fn serial(bytes: &[u8]) {
    let Some(operations) = parse::<Vec<Operation>>(bytes) else { return };
    let platform = FakePlatform::new();
    let apic = Arc::new(IoApic::new(platform.platform().interrupts.as_ref()).unwrap());
    let paper = Paper::default();
    let port = Serial::new(Box::new(paper.clone()), apic, 4);
    let writes = operations.len();
    for operation in operations {
        match operation {
            Operation::Write { register, byte } => {
                let _ = port.write(register.into(), &[byte]);
            }
            Operation::WriteMany { register, bytes } => {
                let _ = port.write(register, &bytes);
            }
            Operation::Read { register, width } => {
                let _ = port.read(register.into(), &mut [0; 8][..usize::from(width % 9)]);
            }
        }
    }
    assert!(paper.0.lock().len() <= writes, "more was printed than written");
    paper.0.lock().clear();
    // Line control: 8N1, no divisor latch. Modem control: no loop.
    for (register, byte) in [(3, 3), (4, 0), (1, 0), (0, b'x')] {
        port.write(register, &[byte]).unwrap();
    }
    assert_eq!(*paper.0.lock(), b"x");
}
