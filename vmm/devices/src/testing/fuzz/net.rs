//! Frames in both directions, in buffers of any size and cut, with headers that make sense and ones that do
//! not.

use arbitrary::Arbitrary;

use super::parse;
use crate::testing::Buffer;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Virtqueue;
use crate::testing::devices::NET;

/// Bytes of the virtio header.
const HEADER: usize = 12;
/// Operations of one run.
const MOST: usize = 64;
const MOST_FRAME: usize = 70_000;
const MOST_BUFFERS: u64 = 32;

#[derive(Debug, Arbitrary)]
struct Session {
    features: u64,
    operations: Vec<Operation>,
}

#[derive(Debug, Arbitrary)]
enum Operation {
    Transmit(Frame),
    /// Receive buffers of this size.
    Offer {
        size: u16,
        count: u8,
    },
    /// The host sends: the guest asks it for its address.
    Ask,
    Take,
}

#[derive(Debug, Arbitrary)]
struct Frame {
    /// flags, gso_type, and so on (§5.1.6).
    header: [u8; HEADER],
    /// Bytes of the header there are.
    header_length: u8,
    start: Vec<u8>,
    length: u16,
    cuts: Vec<u8>,
    indirect: bool,
}

/// Runs operations. Each frame is taken or stops the device, and the device works after a reset.
pub fn net(bytes: &[u8]) {
    let Some(session) = parse::<Session>(bytes) else { return };
    let machine = Machine::new();
    let plugged = (NET.plug)(&machine);
    let (out, into) = (machine.allocate(MOST_FRAME as u64), machine.allocate(MOST_BUFFERS << 16));
    {
        let mut live = Live::new(&machine, plugged.slot, session.features);
        for operation in session.operations.iter().take(MOST) {
            let goes_on = match operation {
                Operation::Transmit(frame) => live.transmit(out, frame),
                Operation::Offer { size, count } => live.offer(into, *size, *count),
                Operation::Ask => live.ask(out),
                Operation::Take => live.take(),
            };
            if !goes_on {
                live.driver.reset();
                live = Live::new(&machine, plugged.slot, session.features);
            }
        }
        live.driver.reset();
    }
    (NET.works)(&machine, plugged.slot);
    machine.segment.remove(plugged.slot);
    machine.assert_unharmed();
}

/// A driver with its queues.
struct Live<'m> {
    machine: &'m Machine,
    driver: Driver<'m>,
    receive: Virtqueue<'m>,
    transmit: Virtqueue<'m>,
    offered: u64,
}

impl<'m> Live<'m> {
    fn new(machine: &'m Machine, slot: u8, features: u64) -> Self {
        let driver = Driver::negotiate(machine, slot, features);
        let mut queues = driver.queues();
        driver.ready();
        let (receive, transmit) = (queues.remove(0), queues.remove(0));
        Self { machine, driver, receive, transmit, offered: 0 }
    }

    fn transmit(&mut self, at: u64, frame: &Frame) -> bool {
        let header = &frame.header[..usize::from(frame.header_length).min(HEADER)];
        let length = header.len() + usize::from(frame.length);
        let mut content = header.to_vec();
        content.extend(&frame.start);
        content.truncate(length);
        self.machine.store(at, &content);
        let mut pieces = Vec::new();
        let mut done = 0;
        for &cut in frame.cuts.iter().take(16) {
            let now = u32::from(cut).min(length as u32 - done);
            pieces.push(Buffer::Read(at + u64::from(done), now));
            done += now;
        }
        pieces.push(Buffer::Read(at + u64::from(done), length as u32 - done));
        if frame.indirect {
            self.transmit.offer_indirect(&pieces)
        } else {
            self.transmit.offer(&pieces)
        };
        self.transmit.notify();
        let used = self.transmit.wait_used_or_needs_reset(&self.driver);
        assert!(used || length < HEADER || self.offered > 0, "a good frame stopped the device: {frame:?}");
        used
    }

    /// Buffers the host may refuse: the device then stops.
    fn offer(&mut self, at: u64, size: u16, count: u8) -> bool {
        for n in 0..u64::from(count).min(MOST_BUFFERS) {
            if self.receive.free() == 0 {
                break;
            }
            self.receive.offer(&[Buffer::Write(at + (n << 16), size.into())]);
            self.offered += 1;
        }
        self.receive.notify();
        true
    }

    fn ask(&mut self, at: u64) -> bool {
        let mut start = vec![0xff; 6];
        start.extend([2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2]);
        start.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
        let length = start.len() as u16;
        self.transmit(
            at,
            &Frame { header: [0; HEADER], header_length: 12, start, length, cuts: vec![], indirect: false },
        )
    }

    fn take(&mut self) -> bool {
        while let Some(used) = self.receive.take_used() {
            assert!(used.length <= 0x1_0000, "{used:?}");
        }
        true
    }
}
