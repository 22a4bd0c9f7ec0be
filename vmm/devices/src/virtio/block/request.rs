//! One request as the driver laid it out (virtio 1.2 §5.2.6): a header, data, a status byte.

use vm_memory::Address;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;

use super::Disk;
use super::MAX_DISCARD_SECTORS;
use super::MOST_DATA;
use crate::virtio::queue::Chain;
use crate::virtio::queue::ChainError;

/// Bytes of a sector, whatever the disk's block size.
pub(super) const SECTOR: u64 = 512;
const HEADER: usize = 16;
/// Bytes of a discard or write-zeroes segment.
const SEGMENT: u32 = 16;
/// Its only flag: the range may be deallocated.
const UNMAP: u32 = 1;

/// Request types.
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// The status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What is asked for. Offsets are bytes into the disk, inside it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
    },
    Flush,
    GetId,
    /// Deallocate.
    Discard {
        offset: u64,
        length: u64,
    },
    /// Zero, keeping the space unless `unmap`.
    WriteZeroes {
        offset: u64,
        length: u64,
        unmap: bool,
    },
    /// Answered at once with this status: unknown, out of range, or a write to a read-only disk.
    Refused(Status),
}

/// A parsed request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) head: u16,
    pub(super) operation: Operation,
    /// Where the data is, in order, each piece inside guest RAM or refused by the memory access.
    pub(super) data: Vec<(GuestAddress, u32)>,
    pub(super) status: GuestAddress,
    /// Sum of `data`.
    pub(super) length: u32,
}

impl Request {
    /// Parses a chain, however it is cut into descriptors (§2.7.4.1): the first 16 readable bytes are the
    /// header, the last writable byte is the status, the rest is data. An error means the chain cannot even be
    /// answered.
    pub(super) fn parse(disk: &Disk, memory: &GuestMemoryMmap, chain: Chain<'_>) -> Result<Self, ChainError> {
        let head = chain.head_index();
        let Pieces { mut readable, mut writable } = Pieces::of(chain)?;
        let mut bytes = [0; HEADER];
        take_header(memory, &mut readable, &mut bytes)?;
        let status = take_status(&mut writable)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
        let kind = u32::from_le_bytes([a, b, c, d]);
        let sector = u64::from_le_bytes(sector);

        let (data, other) =
            if matches!(kind, T_IN | T_GET_ID) { (writable, readable) } else { (readable, writable) };
        if !other.is_empty() {
            return Err(ChainError::Layout("data in the wrong direction"));
        }
        // The chain has no more than 4 GiB in all.
        let length = data.iter().map(|(_, length)| length).sum();
        let operation = match kind {
            T_IN => in_range(disk, sector, length).map(|offset| Operation::Read { offset }),
            T_OUT if disk.read_only => Err(Status::IoError),
            T_OUT => in_range(disk, sector, length).map(|offset| Operation::Write { offset }),
            T_FLUSH => Ok(Operation::Flush),
            T_GET_ID => Ok(Operation::GetId),
            T_DISCARD | T_WRITE_ZEROES if disk.read_only => Err(Status::IoError),
            T_DISCARD | T_WRITE_ZEROES => parse_segment(disk, memory, kind, &data, length)?,
            _ => Err(Status::Unsupported),
        };
        let operation = operation.unwrap_or_else(Operation::Refused);
        Ok(Self { head, operation, data, status, length })
    }
}

/// An address and a number of bytes, at least one.
type Piece = (GuestAddress, u32);

struct Pieces {
    readable: Vec<Piece>,
    writable: Vec<Piece>,
}

impl Pieces {
    fn of(chain: Chain<'_>) -> Result<Self, ChainError> {
        let mut pieces = Self { readable: Vec::new(), writable: Vec::new() };
        for descriptor in chain {
            let piece = (descriptor.addr(), descriptor.len());
            if descriptor.is_write_only() {
                pieces.writable.push(piece);
            } else if pieces.writable.is_empty() {
                pieces.readable.push(piece);
            } else {
                return Err(ChainError::Layout("readable after writable (virtio 1.2 §2.7.4.2)"));
            }
        }
        pieces.readable.retain(|(_, length)| *length > 0);
        pieces.writable.retain(|(_, length)| *length > 0);
        Ok(pieces)
    }
}

/// Cuts the header off the front of `readable`.
fn take_header(
    memory: &GuestMemoryMmap,
    readable: &mut Vec<Piece>,
    header: &mut [u8; HEADER],
) -> Result<(), ChainError> {
    let (mut filled, mut used_up) = (0, 0);
    for (address, length) in readable.iter_mut() {
        let count = (HEADER - filled).min(*length as usize);
        memory.read_slice(&mut header[filled..filled + count], *address).map_err(outside)?;
        filled += count;
        if count == *length as usize {
            used_up += 1;
        } else {
            // No overflow: all bytes up to here have just been read.
            *address = address.unchecked_add(count as u64);
            *length -= u32::try_from(count).expect("at most 16");
        }
        if filled == HEADER {
            readable.drain(..used_up);
            return Ok(());
        }
    }
    Err(ChainError::Layout("no header of 16 bytes"))
}

/// Cuts the status byte off the end of `writable`.
fn take_status(writable: &mut Vec<Piece>) -> Result<GuestAddress, ChainError> {
    let (address, length) = writable.pop().ok_or(ChainError::Layout("no status byte"))?;
    let before = length - 1;
    if before > 0 {
        writable.push((address, before));
    }
    address.checked_add(u64::from(before)).ok_or(ChainError::Layout("a status byte that wraps around"))
}

/// Offset of a transfer of whole sectors, not too many, inside the disk.
fn in_range(disk: &Disk, sector: u64, length: u32) -> Result<u64, Status> {
    let sectors = u64::from(length) / SECTOR;
    let whole = u64::from(length) % SECTOR == 0;
    match sector.checked_add(sectors) {
        Some(end) if whole && end <= disk.sectors && length <= MOST_DATA => Ok(sector * SECTOR),
        _ => Err(Status::IoError),
    }
}

/// The one segment of a discard or write-zeroes request (we say max_*_seg = 1).
fn parse_segment(
    disk: &Disk,
    memory: &GuestMemoryMmap,
    kind: u32,
    data: &[(GuestAddress, u32)],
    length: u32,
) -> Result<Result<Operation, Status>, ChainError> {
    if length != SEGMENT {
        return Ok(Err(Status::Unsupported));
    }
    let mut bytes = Vec::with_capacity(SEGMENT as usize);
    for &(address, piece) in data {
        let mut part = vec![0; piece as usize]; // at most SEGMENT in all
        memory.read_slice(&mut part, address).map_err(outside)?;
        bytes.extend(part);
    }
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
    let (sectors, flags) = (word(8), word(12));
    let unmap = flags & UNMAP != 0;
    // A discard has no flag, and unknown flags are unsupported (virtio 1.2 §5.2.6.2).
    if flags & !UNMAP != 0 || (kind == T_DISCARD && unmap) {
        return Ok(Err(Status::Unsupported));
    }
    let fits = sector.checked_add(u64::from(sectors)).is_some_and(|end| end <= disk.sectors);
    if !fits || sectors > MAX_DISCARD_SECTORS {
        return Ok(Err(Status::IoError));
    }
    let (offset, length) = (sector * SECTOR, u64::from(sectors) * SECTOR);
    Ok(Ok(match kind {
        T_DISCARD => Operation::Discard { offset, length },
        _ => Operation::WriteZeroes { offset, length, unmap },
    }))
}

fn outside(e: vm_memory::GuestMemoryError) -> ChainError {
    ChainError::Memory(std::io::Error::other(e.to_string()))
}
