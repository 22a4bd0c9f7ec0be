//! The I/O APIC's registers and pins, in any order.

use arbitrary::Arbitrary;

use super::parse;
use crate::bus::BusDevice;
use crate::ioapic::IoApic;
use crate::testing::FakePlatform;

#[derive(Debug, Arbitrary)]
enum Operation {
    Write {
        offset: u8,
        bytes: [u8; 8],
        width: u8,
    },
    Read {
        offset: u8,
        width: u8,
    },
    Entry {
        register: u8,
        value: u32,
    },
    Pulse(u32),
    Level(u8, bool),
    EndOfInterrupt(u8),
    /// The host refuses routes, or does not any more.
    Refuse(bool),
}

/// Runs operations; afterwards every pin can be set up and sends what its entry says.
pub fn ioapic(bytes: &[u8]) {
    let Some(operations) = parse::<Vec<Operation>>(bytes) else { return };
    let platform = FakePlatform::new();
    let apic = IoApic::new(platform.platform().interrupts.as_ref()).unwrap();
    let write = |offset, bytes: &[u8]| {
        let _ = apic.write(offset, bytes);
    };
    for operation in operations {
        match operation {
            Operation::Write { offset, bytes, width } => {
                write(u64::from(offset), &bytes[..usize::from(width % 9)]);
            }
            Operation::Read { offset, width } => {
                let _ = apic.read(u64::from(offset), &mut [0; 8][..usize::from(width % 9)]);
            }
            Operation::Entry { register, value } => {
                write(0, &[register, 0, 0, 0]);
                write(0x10, &value.to_le_bytes());
            }
            Operation::Pulse(pin) => apic.pulse(pin).unwrap(),
            Operation::Level(pin, active) => apic.set_level(pin.into(), active).unwrap(),
            Operation::EndOfInterrupt(vector) => apic.eoi(vector),
            Operation::Refuse(refuse) => platform.refuse(refuse),
        }
    }
    for message in platform.received() {
        assert_eq!(message.address >> 20, 0xfee, "{message:x?} goes to no local APIC");
        assert!(message.data < 0x1_0000, "{message:x?}");
    }
    platform.refuse(false);
    for pin in 0..24u8 {
        apic.set_level(pin.into(), false).unwrap();
        for (register, value) in [(0x11 + 2 * pin, 7 << 24), (0x10 + 2 * pin, 0x40 + u32::from(pin))] {
            write(0, &[register, 0, 0, 0]);
            write(0x10, &value.to_le_bytes());
        }
        let message = crate::platform::MsiMessage { address: 0xfee0_7000, data: 0x4040 + u32::from(pin) };
        let before = platform.count(message);
        apic.pulse(pin.into()).unwrap();
        assert_eq!(platform.count(message), before + 1, "pin {pin}");
    }
}
