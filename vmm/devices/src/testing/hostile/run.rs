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
    let stage = Stage::set(subject);
    stage.play(bytes);
    stage.strike();
}

/// A machine with a device to attack, and another guest's beside it.
pub struct Stage<'s> {
    subject: &'s Subject,
    plugged: Plugged,
    others_slot: u8,
    other: Machine,
    machine: Machine,
    /// Doorbells of the other guest's device.
    quiet: Vec<u64>,
}

impl<'s> Stage<'s> {
    /// Plugs both in.
    pub fn set(subject: &'s Subject) -> Self {
        Self::set_on(Machine::new(), subject)
    }

    /// Plugs both into that machine.
    pub fn set_on(machine: Machine, subject: &'s Subject) -> Self {
        let other = machine.beside();
        let others_slot = other.plug(Rng::new());
        Driver::negotiate(&other, others_slot, 0);
        let quiet = machine.platform.doorbells();
        let plugged = (subject.plug)(&machine);
        Self { subject, plugged, others_slot, other, machine, quiet }
    }

    /// The session: what the guests do, no more.
    pub fn play(&self, bytes: &[u8]) {
        let Ok(session) = Session::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
        let Self { subject, plugged, others_slot, other, machine, .. } = self;
        let neighbour = Driver::negotiate(other, *others_slot, 0);
        let mut queue = neighbour.queue(0, Some(8));
        neighbour.ready();
        let bar = neighbour.function.bar(0);
        let mut hostile = Hostile::new(machine, plugged.slot, &mut queue, bar, other.allocate(64));
        hostile.begin(session.start);
        for operation in session.operations.iter().take(MOST) {
            hostile.perform(operation);
        }
        hostile.neighbour_works();
        let in_a_window = |at: &u64| Machine::MMIO32.contains(at) || Machine::MMIO64.contains(at);
        let doorbells = machine.platform.doorbells();
        assert!(doorbells.iter().all(in_a_window), "{doorbells:x?}");
        hostile.recover();
        (subject.works)(machine, plugged.slot);
        hostile.neighbour_works();
        neighbour.reset();
    }

    /// Takes the device away and looks at what is left.
    pub fn strike(self) {
        let Self { plugged, machine, quiet, .. } = self;
        machine.segment.remove(plugged.slot);
        drop(plugged.host);
        assert_eq!(machine.platform.doorbells(), quiet, "a device that is gone left doorbells behind");
        machine.assert_unharmed();
    }
}
