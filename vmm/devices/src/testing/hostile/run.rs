//! One session of a hostile driver, and what must be true during it and afterwards.

use arbitrary::Arbitrary;
use arbitrary::Unstructured;

use super::driver::Hostile;
use super::operation::Session;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Plugged;
use crate::testing::Subject;
use crate::virtio::rng::Rng;

/// Operations of one session. Longer ones find nothing that several shorter ones do not.
const MOST: usize = 200;

/// Lets a hostile driver do to a device what `bytes` say. Panics unless
/// - a device of another guest on the same bus works all the while,
/// - nothing outside of guest RAM was written,
/// - doorbells are nowhere but in the windows for BARs,
/// - after a reset the device works for a driver that keeps the rules,
/// - and it leaves nothing behind on the bus when it is taken away.
pub fn survives(subject: &Subject, bytes: &[u8]) {
    if let Ok(session) = Session::arbitrary_take_rest(Unstructured::new(bytes)) {
        outlives(subject, &session);
    }
}

fn outlives(subject: &Subject, session: &Session) {
    let machine = Machine::new();
    let other = machine.beside();
    let others_slot = other.plug(Rng::new());
    let neighbour = Driver::negotiate(&other, others_slot, 0);
    let mut queue = neighbour.queue(0, Some(8));
    neighbour.ready();
    let buffer = other.allocate(64);
    let quiet = machine.platform.doorbells();

    let Plugged { slot, host } = (subject.plug)(&machine);
    let bar = neighbour.function.bar(0);
    let mut hostile = Hostile::new(&machine, slot, &mut queue, bar, buffer);
    hostile.begin(session.start);
    for operation in session.operations.iter().take(MOST) {
        hostile.perform(operation);
    }
    hostile.neighbour_works();
    let in_a_window = |at: &u64| Machine::MMIO32.contains(at) || Machine::MMIO64.contains(at);
    assert!(machine.platform.doorbells().iter().all(in_a_window), "{:x?}", machine.platform.doorbells());
    hostile.recover();
    (subject.works)(&machine, slot);
    hostile.neighbour_works();

    machine.segment.remove(slot);
    drop(host);
    assert_eq!(machine.platform.doorbells(), quiet, "a device that is gone left doorbells behind");
    hostile.neighbour_works();
    machine.assert_unharmed();
}
