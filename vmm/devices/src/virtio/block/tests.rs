//! What a driver may do to the block, right and wrong, and what comes of it.

use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::Block;
use super::BlockError;
use super::F_DISCARD;
use super::F_FLUSH;
use super::F_RO;
use super::F_WRITE_ZEROES;
use super::QUEUE_SIZES;
use super::backend::Backend;
use super::worker::Requests;
use crate::io_thread::Handler;
use crate::io_thread::Hung;
use crate::io_thread::Pausable;
use crate::io_thread::tests::alone::Alone;
use crate::testing::Buffer;
use crate::testing::Buffer::Read as R;
use crate::testing::Buffer::Write as W;
use crate::testing::Descriptor;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Virtqueue;
use crate::testing::refuses_malformed_chains;
use crate::virtio::device::ActivateError;
use crate::virtio::device::Activation;
use crate::virtio::device::DeviceState;
use crate::virtio::device::VirtioDevice;
use crate::virtio::spec::feature;
use crate::virtio::spec::status;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const ALL: u64 = F_RO | F_FLUSH | F_DISCARD | F_WRITE_ZEROES;

const SECTORS: u64 = 2048;
const BACKENDS: [fn(u16) -> Backend; 2] = [Backend::new, |_| Backend::Synchronous];

/// A disk whose every sector begins with its number.
fn image() -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&(0..SECTORS).flat_map(sector).collect::<Vec<u8>>()).unwrap();
    file
}

fn sector(number: u64) -> Vec<u8> {
    let mut bytes = vec![0xa5; 512];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn contents(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Runs `test` with a disk on each backend, with the file for a look from behind.
fn with_disk(read_only: bool, test: impl Fn(&Machine, u8, &File)) {
    for backend in BACKENDS {
        let file = image();
        let mut block =
            Block::new(file.try_clone().unwrap(), "disk".into(), read_only, "serial-0".into()).unwrap();
        block.backend = Some(backend(QUEUE_SIZES[0]));
        let machine = Machine::new();
        let slot = machine.plug(block);
        test(&machine, slot, &file);
    }
}

fn ready(machine: &Machine, slot: u8) -> (Driver<'_>, Virtqueue<'_>) {
    let driver = Driver::negotiate(machine, slot, ALL);
    let queue = driver.queue(0, None);
    driver.ready();
    (driver, queue)
}

fn header(machine: &Machine, kind: u32, sector: u64) -> u64 {
    let at = machine.allocate(16);
    machine.store(at, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    at
}

/// One request from its parts; returns its status and the used length.
fn request(
    machine: &Machine,
    queue: &mut Virtqueue<'_>,
    kind: u32,
    sector: u64,
    data: &[Buffer],
) -> (u8, u32) {
    let (header, status) = (header(machine, kind, sector), machine.allocate(1));
    machine.store(status, &[0xee]);
    let chain = [&[R(header, 16)], data, &[W(status, 1)]].concat();
    let used = queue.request(&chain);
    (machine.load(status, 1)[0], used)
}

/// Reads a sector in a fresh session.
fn reads(machine: &Machine, slot: u8) {
    let (driver, mut queue) = ready(machine, slot);
    let buffer = machine.allocate(512);
    assert_eq!(request(machine, &mut queue, IN, 7, &[W(buffer, 512)]), (OK, 513));
    assert_eq!(machine.load(buffer, 512), sector(7));
    driver.reset();
}

#[test]
fn the_configuration_says_what_the_disk_can_do() {
    with_disk(false, |machine, slot, _| {
        let driver = Driver::negotiate(machine, slot, ALL);
        assert_eq!(driver.features & ALL, F_FLUSH | F_DISCARD | F_WRITE_ZEROES);
        assert_eq!(driver.config(0, 8), SECTORS);
        assert_eq!((driver.config(12, 4), driver.config(20, 4)), (254, 512));
        assert_eq!((driver.config(36, 4), driver.config(40, 4)), (1 << 19, 1));
        assert_eq!((driver.config(56, 1), driver.config(60, 8)), (1, 0));
    });
    with_disk(true, |machine, slot, _| {
        assert_eq!(Driver::negotiate(machine, slot, ALL).features & ALL, F_RO | F_FLUSH);
    });
}

#[test]
fn a_disk_without_a_sector_or_with_a_bad_serial_is_an_error() {
    let new = |file, serial: &str| Block::new(file, "x.img".into(), false, serial.into()).map(|_| ());
    let empty = new(tempfile::tempfile().unwrap(), "a").unwrap_err();
    assert!(matches!(empty, BlockError::Empty { bytes: 0, .. }) && empty.to_string().contains("x.img"));
    for serial in ["", "123456789012345678901", "white space", "é"] {
        assert!(matches!(new(image(), serial), Err(BlockError::Serial { .. })), "{serial:?}");
    }
}

#[test]
fn what_is_written_is_read_back_in_any_cut() {
    with_disk(false, |machine, slot, file| {
        let (_driver, mut queue) = ready(machine, slot);
        let (from, to) = (machine.allocate(8192), machine.allocate(8192));
        let data: Vec<u8> = (0..4096u32).flat_map(|n| n.to_le_bytes()).take(4096).collect();
        machine.store(from, &data);
        let cut = [R(from, 100), R(from + 100, 0), R(from + 100, 412), R(from + 512, 3584)];
        assert_eq!(request(machine, &mut queue, OUT, 1000, &cut), (OK, 1));
        assert_eq!(contents(file)[1000 * 512..][..4096], data);
        // Both ends are untouched.
        assert_eq!(contents(file)[999 * 512..][..512], sector(999));
        assert_eq!(contents(file)[1008 * 512..][..512], sector(1008));
        let cut = [W(to, 1), W(to + 1, 4000), W(to + 4001, 95)];
        assert_eq!(request(machine, &mut queue, IN, 1000, &cut), (OK, 4097));
        assert_eq!(machine.load(to, 4096), data);
        assert_eq!(machine.load(to + 4096, 4096), vec![0; 4096]);
    });
}

#[test]
fn header_data_and_status_may_share_descriptors() {
    with_disk(false, |machine, slot, file| {
        let (_driver, mut queue) = ready(machine, slot);
        let page = machine.allocate(4096);
        // Header and data in one piece.
        machine.store(page, &[&[1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0][..], &[7; 512]].concat());
        assert_eq!(queue.request(&[R(page, 528), W(page + 1000, 1)]), 1);
        assert_eq!(contents(file)[5 * 512..][..512], [7; 512]);
        // The header in pieces, data and status in one.
        machine.store(page, &[0; 1]);
        assert_eq!(queue.request(&[R(page, 3), R(page + 3, 13), W(page + 1000, 513)]), 513);
        assert_eq!(machine.load(page + 1000, 513), [&[7; 512][..], &[OK]].concat());
        // All of it in an indirect table.
        machine.store(page + 1000, &[9; 513]);
        queue.offer_indirect(&[R(page, 16), W(page + 1000, 500), W(page + 1500, 13)]);
        queue.notify();
        assert_eq!(queue.wait_used().length, 513);
        assert_eq!(machine.load(page + 1000, 513), [&[7; 512][..], &[OK]].concat());
    });
}

#[test]
fn the_serial_is_the_id() {
    with_disk(false, |machine, slot, _| {
        let (_driver, mut queue) = ready(machine, slot);
        let buffer = machine.allocate(64);
        assert_eq!(request(machine, &mut queue, GET_ID, 0, &[W(buffer, 20)]), (OK, 21));
        assert_eq!(machine.load(buffer, 20), *b"serial-0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(request(machine, &mut queue, GET_ID, 0, &[W(buffer, 6), W(buffer + 6, 64)]), (OK, 21));
        assert_eq!(request(machine, &mut queue, GET_ID, 0, &[W(buffer, 6)]), (OK, 7));
    });
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zero() {
    with_disk(false, |machine, slot, file| {
        let (_driver, mut queue) = ready(machine, slot);
        let segment = machine.allocate(16);
        let mut range = |kind, start: u64, count: u32, flags: u32| {
            machine.store(
                segment,
                &[&start.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat(),
            );
            request(machine, &mut queue, kind, 0, &[R(segment, 5), R(segment + 5, 11)])
        };
        assert_eq!(range(DISCARD, 8, 8, 0), (OK, 1));
        assert_eq!(range(WRITE_ZEROES, 101, 3, 0), (OK, 1));
        assert_eq!(range(WRITE_ZEROES, 200, 1, 1), (OK, 1));
        assert_eq!(range(WRITE_ZEROES, 300, 0, 0), (OK, 1));
        let zeroed = |n: &u64| (8..16).contains(n) || (101..104).contains(n) || *n == 200;
        let expected = (0..SECTORS).flat_map(|n| if zeroed(&n) { vec![0; 512] } else { sector(n) });
        assert_eq!(contents(file), expected.collect::<Vec<u8>>());
        // Out of range, too long, unknown flags, a flag that discard does not have.
        assert_eq!(range(DISCARD, SECTORS, 1, 0), (IOERR, 1));
        assert_eq!(range(WRITE_ZEROES, u64::MAX, u32::MAX, 0), (IOERR, 1));
        assert_eq!(range(WRITE_ZEROES, 0, u32::MAX, 0), (IOERR, 1));
        assert_eq!(range(WRITE_ZEROES, 0, 1, 2), (UNSUPP, 1));
        assert_eq!(range(DISCARD, 0, 1, 1), (UNSUPP, 1));
        let two = request(machine, &mut queue, DISCARD, 0, &[R(segment, 16), R(segment, 16)]);
        assert_eq!(two, (UNSUPP, 1), "one segment a request");
    });
}

#[test]
fn what_is_out_of_range_or_unknown_is_an_error_and_the_next_request_works() {
    with_disk(false, |machine, slot, file| {
        let (_driver, mut queue) = ready(machine, slot);
        let buffer = machine.allocate(1024);
        let last = SECTORS - 1;
        for (start, length) in
            [(SECTORS, 512), (last, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 100), (0, 513)]
        {
            assert_eq!(request(machine, &mut queue, IN, start, &[W(buffer, length)]), (IOERR, 1));
            assert_eq!(request(machine, &mut queue, OUT, start, &[R(buffer, length)]), (IOERR, 1));
        }
        for kind in [2, 3, 5, 7, 10, 14, u32::MAX] {
            assert_eq!(request(machine, &mut queue, kind, 0, &[]), (UNSUPP, 1));
        }
        assert_eq!(request(machine, &mut queue, IN, last, &[W(buffer, 512)]), (OK, 513));
        assert_eq!(machine.load(buffer, 512), sector(last));
        assert_eq!(request(machine, &mut queue, IN, last, &[]), (OK, 1), "no sectors at all");
        assert_eq!(request(machine, &mut queue, FLUSH, 0, &[]), (OK, 1));
        assert_eq!(contents(file), (0..SECTORS).flat_map(sector).collect::<Vec<u8>>());
    });
}

/// A disk of 1 GiB that takes no space, on each backend.
fn with_large_disk(test: impl Fn(&Machine, u8, &File)) {
    for backend in BACKENDS {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 30).unwrap();
        let mut block = Block::new(file.try_clone().unwrap(), "disk".into(), false, "large".into()).unwrap();
        block.backend = Some(backend(QUEUE_SIZES[0]));
        let machine = Machine::new();
        let slot = machine.plug(block);
        test(&machine, slot, &file);
    }
}

#[test]
fn one_request_moves_so_much_and_no_more() {
    with_large_disk(|machine, slot, _| {
        let (driver, mut queue) = ready(machine, slot);
        let segments = u64::from(super::SEGMENTS) * driver.config(8, 4);
        assert!(segments <= u64::from(super::MOST_DATA), "a good driver stays below the bound");
        let piece = R(0, 16 << 20);
        assert_eq!(request(machine, &mut queue, OUT, 0, &[piece; 2]), (OK, 1));
        assert_eq!(request(machine, &mut queue, OUT, 0, &[piece, piece, R(0, 512)]), (IOERR, 1));
        assert_eq!(request(machine, &mut queue, OUT, 0, &[piece; 20]), (IOERR, 1));
    });
}

/// Keeps what it is activated with.
struct Idle(Arc<Mutex<Option<Activation>>>);

impl VirtioDevice for Idle {
    fn device_id(&self) -> u16 {
        2
    }
    fn queue_sizes(&self) -> &[u16] {
        super::QUEUE_SIZES
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        *self.0.lock() = Some(activation);
        Ok(())
    }
    fn reset(&mut self) -> Result<(), Hung> {
        Ok(())
    }
    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        Vec::new()
    }
    fn save(&self) -> DeviceState {
        DeviceState::default()
    }
}

#[expect(unsafe_code, reason = "waits for a descriptor it is told of by number")]
fn wait_readable(fd: std::os::fd::RawFd) {
    // SAFETY: the requests it belongs to are alive.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let mut waited = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut waited, None).unwrap();
}

/// Between two looks at whether it is to stop, the thread does, or leaves to the kernel, a bounded piece of work.
#[test]
fn a_reset_waits_for_little_however_much_was_asked_for() {
    for backend in BACKENDS {
        let (machine, caught) = (Machine::new(), Arc::new(Mutex::new(None)));
        let slot = machine.plug(Idle(caught.clone()));
        let driver = Driver::negotiate(&machine, slot, 0);
        let mut queue = driver.queue(0, None);
        driver.ready();
        let count = 8;
        for n in 0..count {
            let header = header(&machine, OUT, n * (32 << 20) / 512);
            queue.offer(&[R(header, 16), R(0, 16 << 20), R(0, 16 << 20), W(machine.allocate(1), 1)]);
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 30).unwrap();
        let block = Block::new(file, "disk".into(), false, "large".into()).unwrap();
        let mut activation = caught.lock().take().unwrap();
        let active = activation.queues.remove(0);
        let mut requests = Requests::new(block.disk.clone(), backend(256), active, activation);
        assert!(Alone::new().with(|interest| requests.start(interest)).is_continue());
        let (mut steps, mut done) = (1, 0);
        loop {
            assert!(requests.under_way() <= super::MOST_UNDER_WAY + u64::from(super::MOST_DATA));
            while queue.take_used().is_some() {
                done += 1;
            }
            if done == count {
                break;
            }
            if let Some(fd) = requests.completions() {
                wait_readable(fd);
            }
            assert!(requests.serve(true).is_continue());
            steps += 1;
        }
        assert!(steps >= count / 3, "{count} requests of 32 MiB took {steps} steps");
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    with_disk(true, |machine, slot, file| {
        let (_driver, mut queue) = ready(machine, slot);
        let buffer = machine.allocate(512);
        for kind in [OUT, DISCARD, WRITE_ZEROES] {
            assert_eq!(request(machine, &mut queue, kind, 0, &[R(buffer, 512)]), (IOERR, 1));
        }
        assert_eq!(request(machine, &mut queue, IN, 3, &[W(buffer, 512)]), (OK, 513));
        assert_eq!(contents(file), (0..SECTORS).flat_map(sector).collect::<Vec<u8>>());
    });
}

#[test]
fn a_driver_that_cannot_flush_writes_through() {
    for backend in BACKENDS {
        let mut block = Block::new(image(), "disk".into(), false, "s".into()).unwrap();
        block.backend = Some(backend(QUEUE_SIZES[0]));
        let machine = Machine::new();
        let slot = machine.plug(block);
        let driver = Driver::negotiate_exactly(&machine, slot, feature::VERSION_1);
        let mut queue = driver.queue(0, None);
        driver.ready();
        let buffer = machine.allocate(512);
        assert_eq!(request(&machine, &mut queue, OUT, 3, &[R(buffer, 512)]), (OK, 1));
        assert_eq!(request(&machine, &mut queue, IN, 3, &[W(buffer, 512)]), (OK, 513));
    }
}

#[test]
fn a_file_that_shrank_is_an_error() {
    with_disk(false, |machine, slot, file| {
        let (_driver, mut queue) = ready(machine, slot);
        let buffer = machine.allocate(1024);
        file.set_len(512).unwrap();
        assert_eq!(request(machine, &mut queue, IN, 0, &[W(buffer, 512)]), (OK, 513));
        assert_eq!(request(machine, &mut queue, IN, 0, &[W(buffer, 1024)]), (IOERR, 1));
        assert_eq!(request(machine, &mut queue, IN, 1, &[W(buffer, 512)]), (IOERR, 1));
    });
}

#[test]
fn a_full_queue_is_served_whole() {
    with_disk(false, |machine, slot, _| {
        let (_driver, mut queue) = ready(machine, slot);
        let page = machine.allocate(4096 * 100);
        for round in 0..5 {
            // 85 chains of 3 descriptors fill 255 of 256.
            let mut heads = Vec::new();
            for n in 0..85 {
                let number = (round * 85 + n) * 4 % SECTORS;
                let at = page + 4096 * n;
                machine.store(at, &[&IN.to_le_bytes()[..], &[0; 4], &number.to_le_bytes()].concat());
                machine.store(at + 2048, &[0xee]);
                heads.push((queue.offer(&[R(at, 16), W(at + 512, 512), W(at + 2048, 1)]), at, number));
            }
            queue.notify();
            for _ in 0..85 {
                assert_eq!(queue.wait_used().length, 513);
            }
            assert_eq!(queue.take_used(), None);
            for (_, at, number) in heads {
                assert_eq!(machine.load(at + 2048, 1), [OK]);
                assert_eq!(machine.load(at + 512, 512), sector(number));
            }
        }
    });
}

#[test]
fn malformed_chains_stop_it_until_reset() {
    with_disk(false, |machine, slot, file| {
        refuses_malformed_chains(machine, slot, 0, 0, reads);
        refuses_malformed_chains(machine, slot, 0, Descriptor::WRITE, reads);
        assert_eq!(contents(file), (0..SECTORS).flat_map(sector).collect::<Vec<u8>>());
    });
}

#[test]
fn chains_without_header_or_status_or_in_the_wrong_order_stop_it_until_reset() {
    with_disk(false, |machine, slot, _| {
        let buffer = machine.allocate(4096);
        let read = header(machine, IN, 0);
        let write = header(machine, OUT, 0);
        let chains: [&[Buffer]; 9] = [
            &[R(read, 16)],
            &[W(buffer, 1)],
            &[R(read, 15), W(buffer, 1)],
            &[R(read, 16), W(buffer, 0)],
            &[W(buffer, 1), R(read, 16)],
            &[R(read, 16), R(buffer, 512), W(buffer, 1)],
            &[R(write, 16), W(buffer, 512), W(buffer, 1)],
            &[R(read, 16), W(Machine::RAM[0].1 - 256, 512), W(buffer, 1)],
            &[R(read, 16), W(buffer, 512), W(Machine::RAM[0].1, 1)],
        ];
        for chain in chains {
            let (driver, mut queue) = ready(machine, slot);
            queue.offer(chain);
            queue.notify();
            driver.wait_needs_reset();
            driver.reset();
            reads(machine, slot);
        }
    });
}

#[test]
fn a_chain_offered_twice_at_once_is_answered_or_stops_it() {
    with_disk(false, |machine, slot, _| {
        for _ in 0..20 {
            let (driver, mut queue) = ready(machine, slot);
            let buffer = machine.allocate(512);
            let head =
                queue.offer(&[R(header(machine, IN, 1), 16), W(buffer, 512), W(machine.allocate(1), 1)]);
            for _ in 0..50 {
                queue.make_available(head);
            }
            queue.notify();
            let _ = queue.wait_used_or_needs_reset(&driver);
            driver.reset();
        }
        reads(machine, slot);
    });
}

#[test]
fn after_a_reset_in_the_middle_of_io_nothing_touches_memory() {
    with_disk(false, |machine, slot, _| {
        let (length, count) = (64u32 << 10, 60);
        let data = machine.allocate(u64::from(length) * count);
        let (read, status_byte) = (header(machine, IN, 0), machine.allocate(1));
        let pattern = vec![0x5a; usize::try_from(u64::from(length) * count).unwrap()];
        for _ in 0..20 {
            let (driver, mut queue) = ready(machine, slot);
            for n in 0..count {
                queue.offer(&[R(read, 16), W(data + n * u64::from(length), length), W(status_byte, 1)]);
            }
            queue.notify();
            driver.reset();
            machine.store(data, &pattern);
            // A whole session later, whatever was in flight would have arrived.
            reads(machine, slot);
            assert!(machine.load(data, pattern.len()) == pattern);
        }
        machine.segment.remove(slot);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random chains over RAM that holds random headers: each is used or the device asks for a reset; the
    /// disk keeps its size and the next session works.
    #[test]
    fn any_chain_is_survived(
        headers in prop::collection::vec((0u32..16, 0u64..SECTORS + 4), 8),
        chains in prop::collection::vec(
            prop::collection::vec((0u64..8, any::<bool>(), prop_oneof![Just(1u32), Just(16), 0u32..40, Just(512), any::<u32>()]), 1..6),
            1..12,
        ),
    ) {
        with_disk(false, |machine, slot, file| {
            let pages: Vec<u64> = headers.iter().map(|&(kind, sector)| header(machine, kind, sector)).collect();
            let (driver, mut queue) = ready(machine, slot);
            for chain in &chains {
                let buffers: Vec<_> = chain
                    .iter()
                    .map(|&(page, write, length)| {
                        let address = pages[page as usize];
                        if write { W(address, length) } else { R(address, length) }
                    })
                    .collect();
                queue.offer(&buffers);
                queue.notify();
                if !queue.wait_used_or_needs_reset(&driver) {
                    break;
                }
            }
            driver.reset();
            assert_eq!(driver.function.status() & status::DEVICE_NEEDS_RESET, 0);
            assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
            let (driver, mut queue) = ready(machine, slot);
            let buffer = machine.allocate(512);
            assert_eq!(request(machine, &mut queue, IN, 0, &[W(buffer, 512)]), (OK, 513));
            driver.reset();
        });
    }
}
