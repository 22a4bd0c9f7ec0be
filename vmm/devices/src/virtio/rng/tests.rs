//! What a driver may do to the rng, right and wrong, and what comes of it.

use crate::testing::Buffer;
use crate::testing::Descriptor;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::refuses_malformed_chains;
use crate::virtio::rng::Rng;
use crate::virtio::spec::feature;

/// Asks for 64 bytes and checks that they come.
fn gives_entropy(machine: &Machine, slot: u8) {
    let driver = Driver::negotiate(machine, slot, 0);
    let mut queue = driver.queue(0, None);
    driver.ready();
    let buffer = machine.allocate(64);
    assert_eq!(queue.request(&[Buffer::Write(buffer, 64)]), 64);
    assert_ne!(machine.load(buffer, 64), [0; 64]);
    driver.reset();
}

#[test]
fn entropy_fills_the_buffers_and_nothing_else() {
    let machine = Machine::new();
    let slot = machine.plug(Rng::new());
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut queue = driver.queue(0, Some(8));
    driver.ready();
    let page = machine.allocate(4096);
    for round in 0..100 {
        machine.store(page, &[0; 4096]);
        let buffers =
            [Buffer::Write(page + 100, 32), Buffer::Write(page + 1000, 0), Buffer::Write(page + 2000, 32)];
        let used = if round % 2 == 0 {
            queue.request(&buffers)
        } else {
            queue.offer_indirect(&buffers);
            queue.notify();
            queue.wait_used().length
        };
        assert_eq!(used, 64);
        let bytes = machine.load(page, 4096);
        assert!(bytes[100..132] != [0; 32] && bytes[2000..2032] != [0; 32]);
        let outside = [&bytes[..100], &bytes[132..2000], &bytes[2032..]].concat();
        assert!(outside.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_large_or_empty_request_is_answered_with_what_was_written() {
    let machine = Machine::new();
    let slot = machine.plug(Rng::new());
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut queue = driver.queue(0, None);
    driver.ready();
    let buffer = machine.allocate(1 << 20);
    assert_eq!(queue.request(&[Buffer::Write(buffer, 1 << 20)]), 4096);
    assert_eq!(queue.request(&[Buffer::Write(buffer, 0)]), 0);
    assert_eq!(queue.request(&[Buffer::Read(buffer, 64)]), 0);
}

#[test]
fn it_works_without_event_idx_and_indirect_descriptors() {
    let machine = Machine::new();
    let slot = machine.plug(Rng::new());
    let driver = Driver::negotiate_exactly(&machine, slot, feature::VERSION_1);
    let mut queue = driver.queue(0, None);
    driver.ready();
    let buffer = machine.allocate(64);
    for _ in 0..200 {
        assert_eq!(queue.request(&[Buffer::Write(buffer, 64)]), 64);
    }
}

#[test]
fn malformed_chains_stop_it_until_reset() {
    let machine = Machine::new();
    let slot = machine.plug(Rng::new());
    refuses_malformed_chains(&machine, slot, 0, Descriptor::WRITE, gives_entropy);
}

#[test]
fn a_reset_or_removal_gets_through_to_a_device_that_is_kept_busy() {
    let machine = Machine::new();
    let slot = machine.plug(Rng::new());
    for _ in 0..20 {
        let driver = Driver::negotiate(&machine, slot, 0);
        let mut queue = driver.queue(0, None);
        driver.ready();
        let buffer = machine.allocate(4096);
        for _ in 0..64 {
            queue.offer(&[Buffer::Write(buffer, 4096)]);
        }
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| {
                // Makes the same descriptors available for ever, used or not; the device may object.
                for head in (0..64u16).cycle().take(5_000) {
                    queue.make_available(head);
                    queue.notify();
                }
            });
            driver.reset();
            busy.join().unwrap();
        });
    }
    gives_entropy(&machine, slot);
    machine.segment.remove(slot);
}
