//! Memory that comes and goes.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Plugged;
use super::Subject;
use crate::platform::PluggableRam;
use crate::testing::Buffer::Read as R;
use crate::testing::Buffer::Write as W;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::virtio::mem::Mem;
use crate::virtio::mem::MemRegion;

/// Memory of 128 MiB, all of which the guest may have.
pub const MEM: Subject = Subject { name: "mem", plug, works, refusing: &[(0, 0)] };

const BLOCK: u64 = 2 << 20;
const REGION: MemRegion = MemRegion { address: 4 << 30, length: 128 << 20, block: BLOCK };
const PLUG: u8 = 0;
const UNPLUG_ALL: u8 = 2;
/// `VIRTIO_MEM_RESP_ACK` in a response of ten bytes.
const ACK: [u8; 10] = [0; 10];

/// Remembers which blocks are memory, and that none is twice.
#[derive(Default)]
struct Blocks(Mutex<BTreeSet<u64>>);

impl Blocks {
    fn change(offset: u64, length: u64, mut change: impl FnMut(u64) -> bool) -> io::Result<()> {
        assert!(length > 0 && offset + length <= REGION.length, "{offset:#x}+{length:#x}");
        assert!(offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK), "{offset:#x}+{length:#x}");
        let blocks = (offset..offset + length).step_by(usize::try_from(BLOCK).unwrap());
        blocks.for_each(|block| assert!(change(block), "{block:#x} is so already"));
        Ok(())
    }
}

impl PluggableRam for Blocks {
    fn plug(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut blocks = self.0.lock();
        Self::change(offset, length, |block| blocks.insert(block))
    }

    fn unplug(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut blocks = self.0.lock();
        Self::change(offset, length, |block| blocks.remove(&block))
    }
}

fn plug(machine: &Machine) -> Plugged {
    let mem = Mem::new(REGION, Arc::new(Blocks::default()));
    let control = mem.control();
    control.request(REGION.length).unwrap();
    Plugged { slot: machine.plug(mem), host: Box::new(control) }
}

/// All goes, and a block comes back.
fn works(machine: &Machine, slot: u8) {
    let driver = Driver::negotiate(machine, slot, u64::MAX);
    let mut queue = driver.queue(0, None);
    driver.ready();
    let (request, response) = (machine.allocate(24), machine.allocate(10));
    for (kind, blocks) in [(UNPLUG_ALL, 0), (PLUG, 1)] {
        machine.store(request, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        machine.store(request + 8, &REGION.address.to_le_bytes());
        machine.store(request + 16, &[blocks]);
        machine.store(response, &[0xff; 10]);
        assert_eq!(queue.request(&[R(request, 24), W(response, 10)]), 10);
        assert_eq!(machine.load(response, 10), ACK, "request {kind}");
    }
    driver.reset();
}
