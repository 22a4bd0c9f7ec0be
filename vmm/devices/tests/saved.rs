//! A device that is paused, saved and restored in the middle of its work, as its driver sees it: nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kiai_devices::pci::segment::InsertError;
use kiai_devices::testing::Buffer::Read as R;
use kiai_devices::testing::Buffer::Write as W;
use kiai_devices::testing::Driver;
use kiai_devices::testing::Machine;
use kiai_devices::virtio::balloon::Balloon;
use kiai_devices::virtio::block::Block;
use kiai_devices::virtio::device::VirtioDevice;
use kiai_devices::virtio::rng::Rng;
use kiai_devices::virtio::transport::pci::VirtioPciFunction;
use kiai_devices::virtio::transport::state::FunctionState;
use kiai_devices::virtio::transport::state::RestoreError;

const SECTOR: usize = 512;
const OUT: u8 = 1;

fn function(machine: &Machine, device: impl VirtioDevice + 'static) -> Arc<VirtioPciFunction> {
    let platform = machine.platform.platform();
    VirtioPciFunction::new(Box::new(device), machine.memory.clone(), platform).expect("a function")
}

fn disk() -> File {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(1 << 20).expect("a size");
    file
}

fn block(file: &File) -> Block {
    let file = file.try_clone().expect("the same file");
    Block::new(file, "disk".into(), false, "serial".into()).expect("a disk")
}

/// Why a function does not come back.
#[derive(Debug, PartialEq)]
enum Refused {
    Slot(InsertError),
    State(RestoreError),
}

impl From<InsertError> for Refused {
    fn from(error: InsertError) -> Self {
        Self::Slot(error)
    }
}

fn restore(
    machine: &Machine,
    slot: u8,
    device: impl VirtioDevice + 'static,
    state: &FunctionState,
) -> Result<Arc<VirtioPciFunction>, Refused> {
    let new = function(machine, device);
    let restored = machine.segment.restore(slot, new.clone(), || new.restore(state).map_err(Refused::State));
    restored.map(|()| new)
}

#[test]
fn a_paused_device_leaves_the_queue_alone_and_takes_what_waited_when_it_goes_on() {
    let machine = Machine::new();
    let rng = function(&machine, Rng::new());
    let slot = machine.insert(rng.clone());
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut queue = driver.queue(0, None);
    driver.ready();
    let buffer = machine.allocate(64);
    for _ in 0..3 {
        assert_eq!(queue.request(&[W(buffer, 64)]), 64);
        rng.pause().unwrap();
        machine.store(buffer, &[0; 64]);
        queue.offer(&[W(buffer, 64)]);
        queue.notify();
        // Paused a second time, it is still paused.
        rng.pause().unwrap();
        assert_eq!(machine.load(buffer, 64), [0; 64]);
        rng.resume();
        assert_eq!(queue.wait_used().length, 64);
        assert_ne!(machine.load(buffer, 64), [0; 64]);
    }
    driver.reset();
}

#[test]
fn a_disk_goes_on_where_it_was_in_another_function() {
    let (machine, file) = (Machine::new(), disk());
    let mut disk = function(&machine, block(&file));
    let slot = machine.insert(disk.clone());
    let driver = Driver::negotiate(&machine, slot, u64::MAX);
    let mut queue = driver.queue(0, None);
    driver.ready();
    let (header, data, status) = (machine.allocate(16), machine.allocate(512 * 64), machine.allocate(64));
    for round in 0..20u8 {
        // More than has ended by the time of the pause, and one that nobody has told the device of.
        let count = 16;
        for n in 0..count {
            let at = u64::from(n) * SECTOR as u64;
            machine.store(data + at, &[round ^ n; SECTOR]);
            machine.store(header + 16 * u64::from(n), &[OUT, 0, 0, 0, 0, 0, 0, 0, n, 0, 0, 0, 0, 0, 0, 0]);
            machine.store(status + u64::from(n), &[0xee]);
            let header = header + 16 * u64::from(n);
            queue.offer(&[R(header, 16), R(data + at, 512), W(status + u64::from(n), 1)]);
            if n + 2 == count {
                queue.notify();
            }
        }
        disk.pause().unwrap();
        let state = disk.save().unwrap();
        machine.segment.remove(slot);
        disk = restore(&machine, slot, block(&file), &state).unwrap();
        for _ in 0..count {
            assert_eq!(queue.wait_used().length, 1);
        }
        for n in 0..count {
            let mut sector = [0; SECTOR];
            file.read_exact_at(&mut sector, u64::from(n) * SECTOR as u64).unwrap();
            assert_eq!((sector, machine.load(status + u64::from(n), 1)[0]), ([round ^ n; SECTOR], 0));
        }
    }
    driver.reset();
}

#[test]
fn a_device_without_a_driver_comes_back_without_one() {
    let machine = Machine::new();
    let rng = function(&machine, Rng::new());
    let slot = machine.insert(rng.clone());
    let state = rng.save().unwrap();
    machine.segment.remove(slot);
    restore(&machine, slot, Rng::new(), &state).unwrap();
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut queue = driver.queue(0, None);
    driver.ready();
    let buffer = machine.allocate(8);
    assert_eq!(queue.request(&[W(buffer, 8)]), 8);
}

#[test]
fn a_balloon_keeps_its_size() {
    let machine = Machine::new();
    let balloon = Balloon::new();
    let control = balloon.control();
    let balloon = function(&machine, balloon);
    let slot = machine.insert(balloon.clone());
    let driver = Driver::negotiate(&machine, slot, u64::MAX);
    let _queues = driver.queues();
    driver.ready();
    control.set_target(1 << 20);
    machine.write(driver.function.device + 4, 4, 7);
    balloon.pause().unwrap();
    let state = balloon.save().unwrap();
    machine.segment.remove(slot);
    let balloon = Balloon::new();
    let control = balloon.control();
    restore(&machine, slot, balloon, &state).unwrap();
    assert_eq!((control.target(), control.actual()), (1 << 20, 7 << 12));
    assert_eq!((driver.config(0, 4), driver.config(4, 4)), (256, 7));
}

#[test]
fn the_state_of_another_device_is_refused_and_nothing_stays_on_the_bus() {
    let (machine, file) = (Machine::new(), disk());
    let rng = function(&machine, Rng::new());
    let slot = machine.insert(rng.clone());
    let state = rng.save().unwrap();
    let taken = restore(&machine, slot, Rng::new(), &state).err();
    assert_eq!(taken, Some(Refused::Slot(InsertError::Slot(slot))));
    machine.segment.remove(slot);
    let other = restore(&machine, slot, block(&file), &state).err();
    assert_eq!(other, Some(Refused::State(RestoreError::Other)));
    assert_eq!(machine.read_config(slot, 0, 4), 0xffff_ffff, "the slot is empty");
    assert!(restore(&machine, slot, Rng::new(), &state).is_ok());
}
