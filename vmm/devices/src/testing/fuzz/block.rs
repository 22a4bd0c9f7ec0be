//! Requests to a disk, against a model of it: what the device says is done is what is on the disk, whatever the
//! cut of the chains, and nothing else is.

use std::io::Read;
use std::io::Seek;

use arbitrary::Arbitrary;

use super::parse;
use crate::testing::Buffer;
use crate::testing::Buffer::Read as R;
use crate::testing::Buffer::Write as W;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Virtqueue;
use crate::virtio::block::Block;

const SECTOR: usize = 512;
const SECTORS: u64 = 64;
/// Requests of one run, and the most data of one.
const MOST: usize = 64;
const MOST_DATA: u32 = 16 << 10;

#[derive(Debug, Arbitrary)]
struct Session {
    read_only: bool,
    features: u64,
    requests: Vec<Request>,
}

#[derive(Debug, Arbitrary)]
struct Request {
    kind: Kind,
    /// Bytes before the first cut, and so on; the last piece is the rest.
    cuts: Vec<u8>,
    indirect: bool,
    /// Breaks the layout.
    without_status: bool,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Kind {
    In { sector: Place, length: Bytes },
    Out { sector: Place, length: Bytes, content: u8 },
    Flush,
    GetId { length: Bytes },
    Discard { sector: Place, count: u32, flags: u8 },
    WriteZeroes { sector: Place, count: u32, flags: u8 },
    Other(u32),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Place {
    Inside(u8),
    Any(u64),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Bytes {
    Sectors(u8),
    Any(u16),
}

impl Place {
    fn sector(self) -> u64 {
        match self {
            Self::Inside(sector) => u64::from(sector) % (SECTORS + 2),
            Self::Any(sector) => sector,
        }
    }
}

impl Bytes {
    fn count(self) -> u32 {
        match self {
            Self::Sectors(count) => u32::from(count) * 512 % (MOST_DATA + 512),
            Self::Any(count) => u32::from(count) % MOST_DATA,
        }
    }
}

/// Runs requests against a disk of 32 KiB.
pub fn block(bytes: &[u8]) {
    let Some(session) = parse::<Session>(bytes) else { return };
    let mut file = crate::testing::disk(SECTORS * SECTOR as u64);
    let mut model = vec![0; (SECTORS as usize) * SECTOR];
    let block =
        Block::new(file.try_clone().unwrap(), "disk".into(), session.read_only, "serial".into()).unwrap();
    let machine = Machine::new();
    let slot = machine.plug(block);
    let mut driver = Driver::negotiate(&machine, slot, session.features);
    let mut queue = driver.queue(0, None);
    driver.ready();
    let room = Room {
        header: machine.allocate(32),
        data: machine.allocate(MOST_DATA.into()),
        status: machine.allocate(1),
    };
    for request in session.requests.iter().take(MOST) {
        if !one(&machine, &driver, &mut queue, &room, request, &mut model, session.read_only) {
            driver.reset();
            driver = Driver::negotiate(&machine, slot, session.features);
            queue = driver.queue(0, None);
            driver.ready();
        }
    }
    driver.reset();
    let mut contents = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut contents).unwrap();
    assert!(contents == model, "the disk is not what the driver was told");
    machine.segment.remove(slot);
    machine.assert_unharmed();
}

/// Where a request's parts are.
struct Room {
    header: u64,
    data: u64,
    status: u64,
}

/// One request; false if it stopped the device.
fn one(
    machine: &Machine,
    driver: &Driver<'_>,
    queue: &mut Virtqueue<'_>,
    room: &Room,
    request: &Request,
    model: &mut [u8],
    read_only: bool,
) -> bool {
    let (number, sector, length, writable) = match request.kind {
        Kind::In { sector, length } => (0, sector.sector(), length.count(), true),
        Kind::Out { sector, length, content } => {
            machine.store(room.data, &vec![content; length.count() as usize]);
            (1, sector.sector(), length.count(), false)
        }
        Kind::Flush => (4, 0, 0, false),
        Kind::GetId { length } => (8, 0, length.count(), true),
        Kind::Discard { sector, count, flags } | Kind::WriteZeroes { sector, count, flags } => {
            let segment =
                [&sector.sector().to_le_bytes()[..], &count.to_le_bytes(), &[flags, 0, 0, 0]].concat();
            machine.store(room.data, &segment);
            (if matches!(request.kind, Kind::Discard { .. }) { 11 } else { 13 }, 0, 16, false)
        }
        Kind::Other(number) => (number, 0, 0, false),
    };
    machine.store(room.header, &[&u32::to_le_bytes(number)[..], &[0; 4], &sector.to_le_bytes()].concat());
    machine.store(room.status, &[0xee]);
    let mut chain = cut(R(room.header, 16), &request.cuts);
    let data = if writable { W(room.data, length) } else { R(room.data, length) };
    chain.extend(cut(data, &request.cuts));
    if !request.without_status {
        chain.push(W(room.status, 1));
    }
    if request.indirect {
        queue.offer_indirect(&chain)
    } else {
        queue.offer(&chain)
    };
    queue.notify();
    if !queue.wait_used_or_needs_reset(driver) {
        let broken = request.without_status || matches!(request.kind, Kind::Other(0 | 8));
        assert!(broken, "a good request stopped the disk: {request:?}");
        return false;
    }
    if request.without_status {
        // The last byte of what could be written has served for it.
        return match request.kind {
            Kind::In { .. } | Kind::GetId { .. } => true,
            _ => panic!("answered without room for an answer: {request:?}"),
        };
    }
    let status = machine.load(room.status, 1)[0];
    assert!(status <= 2, "status {status} of {request:?}");
    if status == 0 {
        apply(machine, room, request.kind, model, read_only);
    }
    true
}

/// What a request that succeeded has done.
fn apply(machine: &Machine, room: &Room, kind: Kind, model: &mut [u8], read_only: bool) {
    let range = |sector: u64, bytes: usize| {
        let start = usize::try_from(sector).unwrap() * SECTOR;
        start..start + bytes
    };
    match kind {
        Kind::In { sector, length } => {
            let length = length.count() as usize;
            assert!(machine.load(room.data, length) == model[range(sector.sector(), length)], "{kind:?}");
        }
        Kind::Out { sector, length, content } => {
            assert!(!read_only, "{kind:?} of a read-only disk");
            model[range(sector.sector(), length.count() as usize)].fill(content);
        }
        Kind::Discard { sector, count, .. } | Kind::WriteZeroes { sector, count, .. } => {
            assert!(!read_only, "{kind:?} of a read-only disk");
            if count > 0 {
                model[range(sector.sector(), count as usize * SECTOR)].fill(0);
            }
        }
        Kind::Flush | Kind::GetId { .. } | Kind::Other(_) => {}
    }
}

/// A buffer in pieces.
fn cut(buffer: Buffer, cuts: &[u8]) -> Vec<Buffer> {
    let (address, length) = match buffer {
        R(address, length) | W(address, length) => (address, length),
    };
    let piece = |at: u32, length| match buffer {
        R(..) => R(address + u64::from(at), length),
        W(..) => W(address + u64::from(at), length),
    };
    let mut pieces = Vec::new();
    let mut done = 0;
    for &cut in cuts.iter().take(16) {
        let now = u32::from(cut).min(length - done);
        pieces.push(piece(done, now));
        done += now;
    }
    pieces.push(piece(done, length - done));
    pieces
}
