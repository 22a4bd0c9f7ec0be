//! A shared directory as a device like any other.

use kiai_devices::testing::Buffer::Read as R;
use kiai_devices::testing::Buffer::Write as W;
use kiai_devices::testing::Descriptor;
use kiai_devices::testing::Driver;
use kiai_devices::testing::Machine;
use kiai_devices::testing::Plugged;
use kiai_devices::testing::Subject;

use crate::Fs;

/// A share of an empty directory.
pub const FS: Subject = Subject { name: "fs", plug, works, refusing: &[(1, 0), (1, Descriptor::WRITE)] };

/// FUSE requests (`include/uapi/linux/fuse.h`).
const GETATTR: u32 = 3;
const INIT: u32 = 26;
/// Bytes of `fuse_out_header`.
const ANSWER: usize = 16;

fn plug(machine: &Machine) -> Plugged {
    let directory = tempfile::tempdir().unwrap();
    Plugged { slot: machine.plug(Fs::new("share", directory.path()).unwrap()), host: Box::new(directory) }
}

/// A session begins and the root has attributes.
fn works(machine: &Machine, slot: u8) {
    let driver = Driver::negotiate(machine, slot, 0);
    let mut queues = driver.queues();
    driver.ready();
    let (request, answer) = (machine.allocate(4096), machine.allocate(4096));
    let init: Vec<u8> = [7u32, 41, 1 << 20, u32::MAX, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    for (opcode, node, body) in [(INIT, 0, [init, vec![0; 44]].concat()), (GETATTR, 1, vec![0; 16])] {
        let message = message(opcode, node, &body);
        machine.store(request, &message);
        queues[1].request(&[R(request, u32::try_from(message.len()).unwrap()), W(answer, 4096)]);
        let header = machine.load(answer, ANSWER);
        assert_eq!(header[4..8], [0; 4], "request {opcode} failed: {header:x?}");
    }
    driver.reset();
}

/// A request with its header.
pub(super) fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + body.len()).unwrap();
    [
        &length.to_le_bytes()[..],
        &opcode.to_le_bytes(),
        &1u64.to_le_bytes(),
        &node.to_le_bytes(),
        &[0; 16],
        body,
    ]
    .concat()
}
