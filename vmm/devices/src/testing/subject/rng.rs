//! The entropy device.

use super::Plugged;
use super::Subject;
use crate::testing::Buffer;
use crate::testing::Descriptor;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::virtio::rng::Rng;

/// The entropy device.
pub const RNG: Subject = Subject { name: "rng", plug, works, refusing: &[(0, Descriptor::WRITE)] };

fn plug(machine: &Machine) -> Plugged {
    Plugged { slot: machine.plug(Rng::new()), host: Box::new(()) }
}

/// Asks for 64 bytes and checks that they come.
fn works(machine: &Machine, slot: u8) {
    let driver = Driver::negotiate(machine, slot, 0);
    let mut queue = driver.queue(0, None);
    driver.ready();
    let buffer = machine.allocate(64);
    assert_eq!(queue.request(&[Buffer::Write(buffer, 64)]), 64);
    assert_ne!(machine.load(buffer, 64), [0; 64]);
    driver.reset();
}
