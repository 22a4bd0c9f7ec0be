//! What a driver may ask of the region, right and wrong, and what comes of it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::F_UNPLUGGED_INACCESSIBLE;
use super::Mem;
use super::MemControl;
use super::MemRegion;
use crate::platform::PluggableRam;
use crate::testing::Buffer::Read as R;
use crate::testing::Buffer::Write as W;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Virtqueue;
use crate::testing::refuses_malformed_chains;

const BLOCK: u64 = 2 << 20;
const STEP: u64 = 128 << 20;
const REGION: MemRegion = MemRegion { address: 4 << 30, length: 512 << 20, block: BLOCK };

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
/// Responses: type and state.
const ACK: (u16, u16) = (0, 0);
const NACK: (u16, u16) = (1, 0);
const BUSY: (u16, u16) = (2, 0);
const ERROR: (u16, u16) = (3, 0);
const UNPLUGGED: (u16, u16) = (0, 1);
const MIXED: (u16, u16) = (0, 2);

/// Remembers which blocks are memory.
#[derive(Default)]
struct FakeRam {
    blocks: Mutex<BTreeSet<u64>>,
    refuses: Mutex<bool>,
}

impl FakeRam {
    fn refuse(&self, refuse: bool) {
        *self.refuses.lock() = refuse;
    }

    fn change(&self, offset: u64, length: u64, plug: bool) -> io::Result<()> {
        assert!(length > 0 && offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK));
        assert!(offset + length <= REGION.length, "{offset:#x}+{length:#x}");
        if *self.refuses.lock() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let mut blocks = self.blocks.lock();
        for block in (offset..offset + length).step_by(2 << 20) {
            let changed = if plug { blocks.insert(block) } else { blocks.remove(&block) };
            assert!(changed, "{block:#x} is so already");
        }
        Ok(())
    }
}

impl PluggableRam for FakeRam {
    fn plug(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(offset, length, true)
    }

    fn unplug(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(offset, length, false)
    }
}

struct Plugged {
    machine: Machine,
    slot: u8,
    control: MemControl,
    ram: Arc<FakeRam>,
}

fn plugged() -> Plugged {
    let machine = Machine::new();
    let ram = Arc::new(FakeRam::default());
    let device = Mem::new(REGION, ram.clone());
    let control = device.control();
    let slot = machine.plug(device);
    Plugged { machine, slot, control, ram }
}

/// A driver's request and the answer to it.
struct Asking<'m> {
    machine: &'m Machine,
    queue: Virtqueue<'m>,
    /// Room for the request and, behind it, the response.
    at: u64,
}

impl<'m> Asking<'m> {
    fn new(machine: &'m Machine, driver: &Driver<'m>) -> Self {
        let queue = driver.queue(0, None);
        driver.ready();
        Self { machine, queue, at: machine.allocate(4096) }
    }

    fn ask(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        self.machine.store(self.at, &request);
        self.machine.store(self.at + 64, &[0xff; 10]);
        assert_eq!(self.queue.request(&[R(self.at, 24), W(self.at + 64, 10)]), 10);
        let response = self.machine.load(self.at + 64, 10);
        let word = |at: usize| u16::from_le_bytes([response[at], response[at + 1]]);
        (word(0), word(8))
    }

    /// The same for blocks counted from the region's start.
    fn blocks(&mut self, kind: u16, first: u64, count: u16) -> (u16, u16) {
        self.ask(kind, REGION.address + first * BLOCK, count)
    }
}

#[test]
fn the_guest_plugs_what_the_host_asks_for_and_unplugs_it_again() {
    let Plugged { machine, slot, control, ram } = plugged();
    control.request(4 * BLOCK).unwrap();
    let driver = Driver::negotiate(&machine, slot, F_UNPLUGGED_INACCESSIBLE);
    assert_eq!(driver.features & F_UNPLUGGED_INACCESSIBLE, F_UNPLUGGED_INACCESSIBLE);
    let mut asking = Asking::new(&machine, &driver);
    let fields: Vec<u64> = (0..7).map(|field| driver.config(8 * field, 8)).collect();
    assert_eq!(fields, [BLOCK, 0, REGION.address, REGION.length, STEP, 0, 4 * BLOCK]);

    assert_eq!(asking.blocks(PLUG, 0, 3), ACK);
    assert_eq!(asking.blocks(PLUG, 7, 1), ACK);
    assert_eq!(driver.config(40, 8), 4 * BLOCK);
    assert_eq!(control.sizes().plugged, 4 * BLOCK);
    assert_eq!(Vec::from_iter(ram.blocks.lock().iter().map(|b| b / BLOCK)), [0, 1, 2, 7]);
    assert_eq!(asking.blocks(STATE, 0, 3), ACK);
    assert_eq!(asking.blocks(STATE, 2, 2), MIXED);
    assert_eq!(asking.blocks(STATE, 3, 4), UNPLUGGED);

    control.request(BLOCK).unwrap();
    machine.platform.wait_for(driver.function.message(0));
    assert_eq!(driver.config(48, 8), BLOCK);
    assert_eq!(asking.blocks(UNPLUG, 0, 2), ACK);
    assert_eq!(asking.blocks(UNPLUG, 7, 1), ACK);
    assert_eq!(control.wait(|sizes| sizes.plugged == sizes.requested, Instant::now()).plugged, BLOCK);
    assert_eq!(Vec::from_iter(ram.blocks.lock().iter().map(|b| b / BLOCK)), [2]);
}

#[test]
fn no_more_is_plugged_than_the_host_asks_for() {
    let Plugged { machine, slot, control, ram } = plugged();
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut asking = Asking::new(&machine, &driver);
    assert_eq!(asking.blocks(PLUG, 0, 1), ERROR, "nothing is usable yet");
    control.request(2 * BLOCK).unwrap();
    assert_eq!(asking.blocks(PLUG, 0, 3), NACK);
    assert_eq!(asking.blocks(PLUG, 0, 2), ACK);
    assert_eq!(asking.blocks(PLUG, 2, 1), NACK);
    control.request(0).unwrap();
    assert_eq!(asking.blocks(UNPLUG, 0, 1), ACK);
    assert_eq!(asking.blocks(PLUG, 0, 1), NACK, "what was given up comes back only if asked for");
    assert_eq!(ram.blocks.lock().len(), 1);
}

#[test]
fn requests_that_make_no_sense_change_nothing() {
    let Plugged { machine, slot, control, ram } = plugged();
    control.request(STEP).unwrap();
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut asking = Asking::new(&machine, &driver);
    assert_eq!(asking.blocks(PLUG, 1, 2), ACK);
    let before = ram.blocks.lock().clone();
    let start = REGION.address;
    for kind in [PLUG, UNPLUG, STATE] {
        for (address, count) in [
            (start + 4096, 1),                // not aligned
            (start + BLOCK, 0),               // nothing
            (start - BLOCK, 1),               // before the region
            (0, 1),                           // RAM of the boot
            (start + STEP - BLOCK, 2),        // beyond what is usable
            (start + STEP, 1),                // likewise
            (start + REGION.length, 1),       // behind the region
            (u64::MAX - BLOCK + 1, 1),        // at the end of everything
            (u64::MAX - BLOCK + 1, u16::MAX), // and around it
            (start, u16::MAX),                // longer than the region
        ] {
            assert_eq!(asking.ask(kind, address, count), ERROR, "{kind} {address:#x} {count}");
        }
    }
    assert_eq!(asking.blocks(PLUG, 0, 2), ERROR, "the second is plugged");
    assert_eq!(asking.blocks(PLUG, 1, 1), ERROR, "plugged");
    assert_eq!(asking.blocks(UNPLUG, 2, 2), ERROR, "the second is not plugged");
    assert_eq!(asking.blocks(UNPLUG, 0, 1), ERROR, "not plugged");
    for kind in [4, 5, u16::MAX] {
        assert_eq!(asking.blocks(kind, 1, 2), ERROR);
    }
    assert_eq!((ram.blocks.lock().clone(), control.sizes().plugged), (before, 2 * BLOCK));
}

#[test]
fn a_host_that_cannot_is_busy_and_nothing_changes() {
    let Plugged { machine, slot, control, ram } = plugged();
    control.request(8 * BLOCK).unwrap();
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut asking = Asking::new(&machine, &driver);
    ram.refuse(true);
    assert_eq!(asking.blocks(PLUG, 0, 2), BUSY);
    assert_eq!(control.sizes().plugged, 0);
    ram.refuse(false);
    assert_eq!(asking.blocks(PLUG, 0, 2), ACK);
    ram.refuse(true);
    assert_eq!(asking.blocks(UNPLUG, 0, 1), BUSY);
    assert_eq!(asking.blocks(UNPLUG_ALL, 0, 0), BUSY);
    assert_eq!(control.sizes().plugged, 2 * BLOCK);
    ram.refuse(false);
    assert_eq!(asking.blocks(UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(ram.blocks.lock().len(), 0);
}

#[test]
fn unplugging_all_makes_the_usable_region_as_small_as_what_is_asked_for() {
    let Plugged { machine, slot, control, .. } = plugged();
    control.request(STEP + BLOCK).unwrap();
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut asking = Asking::new(&machine, &driver);
    assert_eq!(driver.config(32, 8), 2 * STEP);
    assert_eq!(asking.blocks(PLUG, 100, 1), ACK);
    control.request(BLOCK).unwrap();
    assert_eq!(driver.config(32, 8), 2 * STEP, "a block may be plugged up there");
    machine.platform.wait_for(driver.function.message(0));
    assert_eq!(asking.blocks(UNPLUG_ALL, 0, 0), ACK);
    machine.platform.wait_for(driver.function.message(0));
    assert_eq!((driver.config(32, 8), driver.config(40, 8)), (STEP, 0));
    assert_eq!(asking.blocks(PLUG, 100, 1), ERROR);
}

#[test]
fn what_is_plugged_survives_a_reset() {
    let Plugged { machine, slot, control, .. } = plugged();
    control.request(4 * BLOCK).unwrap();
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut asking = Asking::new(&machine, &driver);
    assert_eq!(asking.blocks(PLUG, 0, 2), ACK);
    driver.reset();
    assert_eq!(control.sizes().plugged, 2 * BLOCK);
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut asking = Asking::new(&machine, &driver);
    assert_eq!(driver.config(40, 8), 2 * BLOCK);
    assert_eq!(asking.blocks(STATE, 0, 2), ACK);
    assert_eq!(asking.blocks(PLUG, 1, 1), ERROR);
}

#[test]
fn a_size_that_cannot_be_is_refused() {
    let control = MemControl::new(REGION);
    for bytes in [1, BLOCK + 4096, REGION.length + BLOCK, u64::MAX] {
        assert!(control.request(bytes).is_err(), "{bytes:#x}");
    }
    control.request(REGION.length).unwrap();
    assert_eq!(control.sizes().requested, REGION.length);
}

#[test]
fn who_waits_for_a_device_that_goes_is_told() {
    let Plugged { machine, slot, control, .. } = plugged();
    control.request(BLOCK).unwrap();
    let waiting = std::thread::spawn({
        let control = control.clone();
        move || control.wait(|sizes| sizes.plugged == BLOCK, Instant::now() + Duration::from_secs(600))
    });
    machine.segment.remove(slot);
    assert_eq!(waiting.join().unwrap().plugged, 0);
}

#[test]
fn chains_that_are_no_request_stop_it_until_reset() {
    let Plugged { machine, slot, control, .. } = plugged();
    control.request(BLOCK).unwrap();
    let at = machine.allocate(4096);
    for chain in [vec![R(at, 23), W(at, 10)], vec![R(at, 24), W(at, 9)], vec![R(at, 24)], vec![W(at, 64)]] {
        let driver = Driver::negotiate(&machine, slot, 0);
        let mut queue = driver.queue(0, None);
        driver.ready();
        queue.offer(&chain);
        queue.notify();
        driver.wait_needs_reset();
        driver.reset();
    }
    refuses_malformed_chains(&machine, slot, 0, 0, |machine, slot| {
        let driver = Driver::negotiate(machine, slot, 0);
        let mut asking = Asking::new(machine, &driver);
        assert_eq!(asking.blocks(PLUG, 0, 1), ACK);
        assert_eq!(asking.blocks(UNPLUG, 0, 1), ACK);
        driver.reset();
    });
}

/// A request as a driver that knows no shame makes it.
#[derive(Debug, Clone)]
enum Step {
    Ask { kind: u16, first: u64, count: u16, skew: u64 },
    Resize { blocks: u64 },
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let skew = prop_oneof![9 => Just(0u64), 1 => Just(4096)];
    prop_oneof![
        20 => (0..4u16, 0..70u64, 0..12u16, skew)
            .prop_map(|(kind, first, count, skew)| Step::Ask { kind, first, count, skew }),
        4 => (0..64u64).prop_map(|blocks| Step::Resize { blocks }),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is asked in whatever order, the device does what a set of block numbers does, and memory never
    /// grows beyond what the host asked for.
    #[test]
    fn any_sequence_of_requests_does_what_a_set_of_blocks_does(steps in prop::collection::vec(step(), 1..80)) {
        let Plugged { machine, slot, control, ram } = plugged();
        let mut driver = Driver::negotiate(&machine, slot, 0);
        let mut asking = Asking::new(&machine, &driver);
        let (mut model, mut requested, mut usable) = (BTreeSet::new(), 0u64, 0u64);
        for step in steps {
            match step {
                Step::Resize { blocks } => {
                    control.request(blocks * BLOCK).unwrap();
                    requested = blocks;
                    usable = usable.max((blocks * BLOCK).next_multiple_of(STEP) / BLOCK);
                }
                Step::Reset => {
                    driver.reset();
                    driver = Driver::negotiate(&machine, slot, 0);
                    asking = Asking::new(&machine, &driver);
                }
                Step::Ask { kind, first, count, skew } => {
                    let range = first..first + u64::from(count);
                    let held = range.clone().filter(|block| model.contains(block)).count();
                    let sane = count > 0 && skew == 0 && range.end <= usable;
                    let expected = match kind {
                        UNPLUG_ALL => {
                            model.clear();
                            usable = (requested * BLOCK).next_multiple_of(STEP) / BLOCK;
                            ACK
                        }
                        _ if !sane => ERROR,
                        PLUG if held > 0 => ERROR,
                        PLUG if model.len() as u64 + u64::from(count) > requested => NACK,
                        PLUG => { model.extend(range); ACK }
                        UNPLUG if held < usize::from(count) => ERROR,
                        UNPLUG => { model.retain(|block| !range.contains(block)); ACK }
                        _ if held == usize::from(count) => ACK,
                        _ if held == 0 => UNPLUGGED,
                        _ => MIXED,
                    };
                    let before = ram.blocks.lock().len() as u64;
                    let answer = asking.ask(kind, REGION.address + first * BLOCK + skew, count);
                    prop_assert_eq!(answer, expected);
                    let now = ram.blocks.lock().len() as u64;
                    prop_assert!(now <= before || now <= requested);
                }
            }
            let blocks: BTreeSet<u64> = ram.blocks.lock().iter().map(|block| block / BLOCK).collect();
            prop_assert_eq!(&blocks, &model);
            prop_assert_eq!(control.sizes().plugged, model.len() as u64 * BLOCK);
        }
    }
}
