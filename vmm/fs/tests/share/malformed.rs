//! Broken chains stop the device; broken messages get an error; neither stops the process.

use std::fs;

use crate::calls::ROOT;
use crate::driver::Body;
use crate::driver::Driver;
use crate::driver::Event;
use crate::driver::RAM;
use crate::driver::u32_at;

const WRITE: u16 = 2;

fn header(length: u32, opcode: u32) -> Body {
    Body::new().u32(length).u32(opcode).u64(5).u64(ROOT).u32(0).u32(0).u32(0).u32(0)
}

#[test]
fn chains_outside_of_memory_stop_the_device() {
    let end = RAM[0].0 + RAM[0].1 as u64;
    let broken: [&[(u64, u32, u16)]; 5] = [
        &[(end, 64, 0), (0x10_0000, 64, WRITE)],
        &[(end - 16, 64, 0), (0x10_0000, 64, WRITE)],
        &[(0x10_0000, 64, 0), (u64::MAX - 8, 64, WRITE)],
        &[(0x10_0000, 64, 0), (5 << 20, 64, WRITE)],
        &[(0x10_0000, 3 << 20, 0), (0x10_0000, 64, WRITE)],
    ];
    for chain in broken {
        let directory = tempfile::tempdir().unwrap();
        let mut driver = Driver::new(directory.path());
        driver.submit(chain);
        assert_eq!(driver.event(), Event::NeedsReset, "{chain:x?}");
        driver.activate();
        driver.init().unwrap();
        assert!(driver.getattr(ROOT, None).is_ok(), "a reset repairs it");
    }
}

#[test]
fn a_ring_that_jumps_stops_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(directory.path());
    driver.publish(0x4000);
    assert_eq!(driver.event(), Event::NeedsReset);
}

#[test]
fn a_message_that_cannot_be_decoded_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(directory.path());
    let messages = [
        Vec::new(),
        vec![1; 7],
        header(0, 1).0,
        header(40, 1).0,
        header(u32::MAX, 1).0,
        header(4096, 1).0,
        header(42, 1).raw(b"ab").0,
        header(56, 35).zeroes(4).0,
        header(60, 21).u32(1000).u32(0).name("user.x").0,
        header(44, 12).zeroes(4).0,
        header(48, 42).u32(u32::MAX).u32(0).0,
        header(48, 42).u32(1000).u32(0).0,
        header(80, 39).u64(0).u32(0).u32(0).u64(0).u32(u32::MAX).u32(u32::MAX).0,
    ];
    for message in messages {
        let opcode = if message.len() >= 8 { u32_at(&message, 4) } else { 0 };
        let reply = driver.exchange(&message, 256);
        let forget = opcode == 2 || opcode == 42;
        if forget {
            assert!(reply.is_empty());
        } else {
            assert!(u32_at(&reply, 4).cast_signed() < 0, "{message:x?} -> {reply:x?}");
        }
        driver.exchange(&message, 0);
        driver.exchange(&message, 8);
    }
    assert!(driver.getattr(ROOT, None).is_ok());
}

#[test]
fn random_messages_do_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(directory.path().join("secret"), "secret").unwrap();
    let mut driver = Driver::new(&shared);
    let (file, handle) = driver.create(ROOT, "a", libc::O_RDWR, 0o100_644).unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let opcode = random.below(55);
        let node = [ROOT, file.node, random.next()][random.below(3) as usize];
        let mut body = Body::new();
        for _ in 0..random.below(12) {
            body = match random.below(6) {
                0 => body.u64(handle),
                1 => body.u32(random.below(u64::from(u32::MAX)) as u32),
                2 => body.name(["..", "a", "b", "user.x", "/", ""][random.below(6) as usize]),
                3 => body.u64(random.next()),
                4 => body.u32(random.below(4096) as u32),
                _ => body.zeroes(random.below(64) as usize),
            };
        }
        let length = if random.below(8) == 0 { random.next() as u32 } else { 40 + body.0.len() as u32 };
        // DESTROY and INIT would end the session the other requests need.
        let opcode = if opcode == 38 || opcode == 26 { 1 } else { opcode as u32 };
        let message = Body::new().u32(length).u32(opcode).u64(1).u64(node).zeroes(16).raw(&body.0);
        let room = [0, 8, 16, 100, 8192][random.below(5) as usize];
        driver.exchange(&message.0, room);
    }
    assert!(driver.getattr(ROOT, None).is_ok());
    assert_eq!(fs::read_to_string(directory.path().join("secret")).unwrap(), "secret");
    let beside: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
    assert_eq!(beside.len(), 2, "{beside:?}");
}

/// xorshift64: reproducible.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
