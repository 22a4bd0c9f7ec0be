//! A device that is paused, saved and restored in the middle of its work, as its driver sees it: nothing.

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kiai_devices::pci::segment::InsertError;
use kiai_devices::testing::Buffer::Read as R;
use kiai_devices::testing::Buffer::Write as W;
use kiai_devices::testing::Driver;
use kiai_devices::testing::Machine;
use kiai_devices::testing::Virtqueue;
use kiai_devices::virtio::balloon::Balloon;
use kiai_devices::virtio::block::Block;
use kiai_devices::virtio::device::VirtioDevice;
use kiai_devices::virtio::rng::Rng;
use kiai_devices::virtio::transport::pci::VirtioPciFunction;
use kiai_devices::virtio::transport::state::FunctionState;
use kiai_devices::virtio::transport::state::RestoreError;
use kiai_devices::virtio::vsock::Vsock;
use kiai_devices::virtio::vsock::VsockPorts;

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

const CID: u64 = 3;
/// Of a packet's header (virtio 1.2 §5.10.6).
const HEADER: u32 = 44;
const OPERATION: u64 = 30;
const REQUEST: u8 = 1;
const READ_WRITE: u8 = 5;

/// The answer to a request at `request`: its identifiers and ports the other way round, and room for 64 KiB.
fn response(machine: &Machine, request: u64) -> Vec<u8> {
    let mut header = machine.load(request, HEADER as usize);
    header[..16].rotate_left(8);
    header[16..24].rotate_left(4);
    header[30] = 2;
    header[36..40].copy_from_slice(&(1u32 << 16).to_le_bytes());
    header
}

#[test]
fn streams_survive_a_pause_and_a_driver_learns_that_they_did_not_survive_a_restore() {
    let machine = Machine::new();
    let ports = VsockPorts::new().unwrap();
    let vsock = function(&machine, Vsock::new(CID, ports.clone()));
    let slot = machine.insert(vsock.clone());
    let driver = Driver::negotiate(&machine, slot, u64::MAX);
    let [mut receive, mut transmit, mut events] = driver.queues().try_into().ok().unwrap();
    driver.ready();
    let (incoming, outgoing, event) = (machine.allocate(4096), machine.allocate(4096), machine.allocate(8));
    let offer = |receive: &mut Virtqueue<'_>| {
        receive.offer(&[W(incoming, 4096)]);
        receive.notify();
    };
    events.offer(&[W(event, 4)]);
    events.offer(&[W(event + 4, 4)]);
    events.notify();

    offer(&mut receive);
    let mut stream = ports.connect(9).unwrap();
    receive.wait_used();
    assert_eq!(machine.load(incoming + OPERATION, 1), [REQUEST]);
    machine.store(outgoing, &response(&machine, incoming));
    transmit.request(&[R(outgoing, HEADER)]);
    vsock.pause().unwrap();
    stream.write_all(b"while it is paused").unwrap();
    vsock.resume();
    offer(&mut receive);
    let used = receive.wait_used();
    assert_eq!(machine.load(incoming + OPERATION, 1), [READ_WRITE]);
    assert_eq!(machine.load(incoming + u64::from(HEADER), 18), b"while it is paused");
    assert_eq!(used.length, HEADER + 18);

    vsock.pause().unwrap();
    let state = vsock.save().unwrap();
    machine.segment.remove(slot);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the stream ends with the device");
    machine.store(event, &[0xff; 8]);
    offer(&mut receive);
    let ports = VsockPorts::new().unwrap();
    let _asked = ports.connect(9).unwrap();
    restore(&machine, slot, Vsock::new(CID, ports), &state).unwrap();
    assert_eq!(events.wait_used().length, 4);
    assert_eq!(
        machine.load(event, 8),
        [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET"
    );
    assert!(receive.take_used().is_none(), "the driver has not reset its streams yet");
    events.offer(&[W(event, 4)]);
    events.notify();
    receive.wait_used();
    assert_eq!(machine.load(incoming + OPERATION, 1), [REQUEST]);
    driver.reset();
}
