//! The disk.

use std::fs::File;

use rustix::fs::MemfdFlags;

use super::Plugged;
use super::Subject;
use crate::testing::Buffer::Read as R;
use crate::testing::Buffer::Write as W;
use crate::testing::Descriptor;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::virtio::block::Block;

/// The disk, of 1 MiB.
pub const BLOCK: Subject =
    Subject { name: "block", plug, works, refusing: &[(0, 0), (0, Descriptor::WRITE)] };

const IN: u8 = 0;
const OUT: u8 = 1;

/// A file of so many zeroes.
pub(crate) fn disk(bytes: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    file
}

fn plug(machine: &Machine) -> Plugged {
    let file = disk(1 << 20);
    let block = Block::new(file.try_clone().unwrap(), "disk".into(), false, "serial".into()).unwrap();
    Plugged { slot: machine.plug(block), host: Box::new(file) }
}

/// Writes a sector and reads it back.
fn works(machine: &Machine, slot: u8) {
    let driver = Driver::negotiate(machine, slot, u64::MAX);
    let mut queue = driver.queue(0, None);
    driver.ready();
    let (header, data, status) = (machine.allocate(16), machine.allocate(1024), machine.allocate(1));
    machine.store(data, &[0x5a; 512]);
    machine.store(header, &[OUT, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(queue.request(&[R(header, 16), R(data, 512), W(status, 1)]), 1);
    machine.store(header, &[IN]);
    assert_eq!(queue.request(&[R(header, 16), W(data + 512, 512), W(status, 1)]), 513);
    assert_eq!((machine.load(status, 1), machine.load(data + 512, 512)), (vec![0], vec![0x5a; 512]));
    driver.reset();
}
