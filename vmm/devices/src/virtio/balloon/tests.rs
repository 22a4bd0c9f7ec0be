//! What a driver may do to the balloon, right and wrong, and what comes of it.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use vm_memory::FileOffset;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;

use super::Balloon;
use super::BalloonControl;
use super::F_MUST_TELL_HOST;
use super::F_REPORTING;
use super::reclaim::reclaim;
use crate::platform::Discards;
use crate::testing::Buffer::Read as R;
use crate::testing::Buffer::Write as W;
use crate::testing::Descriptor;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Virtqueue;
use crate::testing::refuses_malformed_chains;

/// Pages no queue lies in.
const START: u64 = 40 << 20;

fn plugged() -> (Machine, u8, BalloonControl) {
    let machine = Machine::new();
    let balloon = Balloon::new();
    let control = balloon.control();
    let slot = machine.plug(balloon);
    (machine, slot, control)
}

fn fill(machine: &Machine, pages: u64) {
    machine.store(START, &vec![0x77; usize::try_from(pages * 4096).unwrap()]);
}

fn is_zero(machine: &Machine, page: u64) -> bool {
    machine.load(START + page * 4096, 4096) == [0; 4096]
}

#[test]
fn inflated_pages_are_given_back_and_no_others() {
    let (machine, slot, control) = plugged();
    let driver = Driver::negotiate(&machine, slot, F_REPORTING);
    let (mut inflate, mut deflate) = (driver.queue(0, None), driver.queue(1, None));
    driver.ready();
    fill(&machine, 10);
    let numbers = machine.allocate(4096);
    let list: Vec<u8> =
        [3u32, 2, 1, 7, 5, 2].iter().flat_map(|n| (n + (START >> 12) as u32).to_le_bytes()).collect();
    machine.store(numbers, &list);
    assert_eq!(inflate.request(&[R(numbers, 24)]), 0);
    let zero: Vec<u64> = (0..10).filter(|&page| is_zero(&machine, page)).collect();
    assert_eq!((zero, control.returned()), (vec![1, 2, 3, 5, 7], 5 * 4096));
    assert_eq!(deflate.request(&[R(numbers, 24)]), 0);
    fill(&machine, 10);
    assert!(!is_zero(&machine, 1), "the guest has it again");
}

#[test]
fn pages_of_a_driver_that_tells_when_it_takes_them_go_back_a_huge_page_at_a_time() {
    let (machine, slot, control) = plugged();
    let driver = Driver::negotiate(&machine, slot, F_MUST_TELL_HOST);
    let (mut inflate, mut deflate) = (driver.queue(0, None), driver.queue(1, None));
    driver.ready();
    fill(&machine, 512);
    let numbers = machine.allocate(4096);
    let name = |queue: &mut Virtqueue<'_>, pages: std::ops::Range<u32>| {
        let list: Vec<u8> =
            pages.clone().rev().flat_map(|n| (n + (START >> 12) as u32).to_le_bytes()).collect();
        machine.store(numbers, &list);
        assert_eq!(queue.request(&[R(numbers, u32::try_from(list.len()).unwrap())]), 0);
    };
    name(&mut inflate, 256..512);
    name(&mut inflate, 1..256);
    assert_eq!(control.returned(), 0);
    name(&mut inflate, 0..1);
    assert!((0..512).all(|page| is_zero(&machine, page)));
    assert_eq!(control.returned(), 2 << 20);
    // What is taken out has gone before, and is not waited for.
    fill(&machine, 512);
    name(&mut inflate, 200..512);
    name(&mut deflate, 300..301);
    assert!((200..512).all(|page| is_zero(&machine, page)));
    fill(&machine, 512);
    name(&mut inflate, 0..200);
    assert!((0..512).all(|page| !is_zero(&machine, page)));
    name(&mut deflate, 0..200);
    assert!((0..512).all(|page| !is_zero(&machine, page)), "not worth it");
}

#[test]
fn reported_pages_are_given_back_whole() {
    let (machine, slot, control) = plugged();
    let driver = Driver::negotiate(&machine, slot, F_REPORTING);
    let mut queues = driver.queues();
    driver.ready();
    fill(&machine, 10);
    assert_eq!(queues[2].request(&[W(START, 8192), W(START + 4 * 4096 + 1, 8192)]), 0);
    let zero: Vec<u64> = (0..10).filter(|&page| is_zero(&machine, page)).collect();
    assert_eq!((zero, control.returned()), (vec![0, 1, 5], 3 * 4096));
}

/// RAM that is pinned or not, as the test says.
#[derive(Default)]
struct Pins(AtomicBool);

impl Discards for Pins {
    fn discard(&self, discard: &mut dyn FnMut()) -> bool {
        let pinned = self.0.load(Ordering::SeqCst);
        if !pinned {
            discard();
        }
        !pinned
    }
}

#[test]
fn nothing_is_given_back_while_ram_is_pinned() {
    let machine = Machine::new();
    let pins = Arc::new(Pins::default());
    let balloon = Balloon::unless_pinned(pins.clone());
    let control = balloon.control();
    let slot = machine.plug(balloon);
    let driver = Driver::negotiate(&machine, slot, F_REPORTING);
    let mut queues = driver.queues();
    driver.ready();
    fill(&machine, 2);
    pins.0.store(true, Ordering::SeqCst);
    assert_eq!(queues[2].request(&[W(START, 8192)]), 0);
    assert!(!is_zero(&machine, 0) && !is_zero(&machine, 1));
    assert_eq!(control.returned(), 0);
    pins.0.store(false, Ordering::SeqCst);
    assert_eq!(queues[2].request(&[W(START, 8192)]), 0);
    assert!(is_zero(&machine, 0) && is_zero(&machine, 1));
    assert_eq!(control.returned(), 8192);
}

#[test]
fn the_target_reaches_the_guest_and_its_size_the_host() {
    let (machine, slot, control) = plugged();
    control.set_target(64 << 20);
    let driver = Driver::negotiate(&machine, slot, 0);
    let (_inflate, _deflate) = (driver.queue(0, None), driver.queue(1, None));
    driver.ready();
    assert_eq!((driver.config(0, 4), driver.config(4, 4)), (16384, 0));
    control.set_target(4096);
    machine.platform.wait_for(driver.function.message(0));
    assert_eq!(driver.config(0, 8), 1);
    machine.write(driver.function.device + 4, 4, 3);
    assert_eq!((control.target(), control.actual()), (4096, 3 * 4096));
    driver.reset();
    assert_eq!(control.actual(), 0);
    control.set_target(0);
}

#[test]
fn what_breaks_the_rules_stops_it_until_reset() {
    let (machine, slot, _) = plugged();
    let numbers = machine.allocate(32 << 10);
    let hole = u32::try_from(Machine::RAM[0].1 >> 12).unwrap();
    machine.store(numbers, &hole.to_le_bytes());
    let chains = [
        (0, R(numbers, 4)),              // a page in the hole
        (0, R(numbers, 32 << 10)),       // more than one request may hold
        (2, R(START, 4096)),             // not writable
        (2, W(Machine::RAM[0].1, 4096)), // not RAM
        (2, W(0, u32::MAX)),             // across the hole
    ];
    for (index, chain) in chains {
        let driver = Driver::negotiate(&machine, slot, F_REPORTING);
        let mut queues = [0, 1, 2].map(|index| driver.queue(index, None));
        driver.ready();
        queues[index].offer(&[chain]);
        queues[index].notify();
        driver.wait_needs_reset();
        driver.reset();
    }
}

#[test]
fn malformed_chains_stop_it_until_reset() {
    let (machine, slot, _) = plugged();
    // The deflate queue ignores what it is told.
    for (index, flags) in [(0, 0), (2, Descriptor::WRITE)] {
        refuses_malformed_chains(&machine, slot, index, flags, |machine, slot| {
            let driver = Driver::negotiate(machine, slot, F_REPORTING);
            let mut queues = driver.queues();
            driver.ready();
            let numbers = machine.allocate(4);
            machine.store(numbers, &u32::try_from(START >> 12).unwrap().to_le_bytes());
            assert_eq!(queues[0].request(&[R(numbers, 4)]), 0);
            assert_eq!(queues[1].request(&[R(numbers, 4)]), 0);
            assert_eq!(queues[2].request(&[W(START, 4096)]), 0);
            driver.reset();
        });
    }
}

#[test]
fn shared_memory_goes_back_to_the_host() {
    let file = File::from(rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(1 << 20).unwrap();
    let file = Arc::new(file);
    let regions = [0u64, 1 << 19]
        .map(|offset| (GuestAddress(offset * 4), 1 << 19, Some(FileOffset::from_arc(file.clone(), offset))));
    let memory = GuestMemoryMmap::from_ranges_with_files(regions).unwrap();
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    for region in [0u64, 1 << 21] {
        vm_memory::Bytes::write_slice(&memory, &vec![1; 1 << 19], GuestAddress(region)).unwrap();
    }
    assert_eq!(blocks(), 2048);
    assert_eq!(reclaim(&memory, 1 << 21, 1 << 19).unwrap(), 1 << 19);
    assert_eq!(reclaim(&memory, 4096, 8192).unwrap(), 8192);
    assert_eq!(blocks(), 1024 - 16);
    assert!(reclaim(&memory, 0, 1 << 20).is_err());
}
