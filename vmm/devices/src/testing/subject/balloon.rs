//! The balloon.

use super::Plugged;
use super::Subject;
use crate::testing::Buffer;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::virtio::balloon::Balloon;

/// The balloon.
pub const BALLOON: Subject = Subject { name: "balloon", plug, works, refusing: &[(0, 0)] };

/// A page no queue lies in.
const PAGE: u32 = (40 << 20) >> 12;

fn plug(machine: &Machine) -> Plugged {
    let balloon = Balloon::new();
    let control = balloon.control();
    Plugged { slot: machine.plug(balloon), host: Box::new(control) }
}

/// A page goes and comes back empty.
fn works(machine: &Machine, slot: u8) {
    let driver = Driver::negotiate(machine, slot, 0);
    let mut queues = driver.queues();
    driver.ready();
    let numbers = machine.allocate(4);
    machine.store(numbers, &PAGE.to_le_bytes());
    machine.store(u64::from(PAGE) << 12, &[1; 16]);
    assert_eq!(queues[0].request(&[Buffer::Read(numbers, 4)]), 0);
    assert_eq!(machine.load(u64::from(PAGE) << 12, 16), [0; 16]);
    assert_eq!(queues[1].request(&[Buffer::Read(numbers, 4)]), 0);
    driver.reset();
}
