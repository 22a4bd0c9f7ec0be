//! Guest RAM in a file, page by page where the guest has it: first what it booted with, then the region in which it can
//! be plugged. Pages that nobody has written to are holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryMmap;
use vm_memory::GuestMemoryRegion;
use vm_memory::MemoryRegionAddress;
use vm_memory::ReadVolatile;
use vm_memory::VolatileSlice;

const PAGE: usize = 4096;
/// Bytes read from the guest at a time.
const PIECE: usize = 64 * PAGE;
/// Bytes of an entry of `/proc/self/pagemap`, and those of its bits that say that a page has contents of its own.
const ENTRY: usize = 8;
const PRESENT: u64 = 1 << 63 | 1 << 62;

/// A part of guest RAM: where the guest has it, where it is in this process and where it goes in the file.
pub(crate) struct Part {
    pub(crate) guest: u64,
    pub(crate) host: u64,
    pub(crate) length: u64,
    pub(crate) offset: u64,
    /// The host has zeroes where it has no page. Otherwise a page may come from a file.
    pub(crate) anonymous: bool,
}

/// Writes `parts` of `memory` to `file`, which becomes `length` bytes long. Nothing may write to them meanwhile.
pub(crate) fn write(memory: &GuestMemoryMmap, parts: &[Part], file: &File, length: u64) -> io::Result<()> {
    file.set_len(0)?;
    file.set_len(length)?;
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut buffer = vec![0; PIECE];
    let mut entries = vec![0; PIECE / PAGE * ENTRY];
    for part in parts {
        let mut at = 0;
        while at < part.length {
            let count = usize::try_from(part.length - at).unwrap_or(PIECE).min(PIECE);
            let touched = !part.anonymous || {
                let entries = &mut entries[..count / PAGE * ENTRY];
                pagemap.read_exact_at(entries, (part.host + at) / PAGE as u64 * ENTRY as u64)?;
                entries.chunks_exact(ENTRY).any(|entry| {
                    let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
                    entry & PRESENT != 0
                })
            };
            if touched {
                let piece = &mut buffer[..count];
                memory.read_slice(piece, GuestAddress(part.guest + at)).map_err(io::Error::other)?;
                write_pages(piece, file, part.offset + at)?;
            }
            at += count as u64;
        }
    }
    Ok(())
}

/// Copies what `file` has of the memory that the guest booted with into `memory`, which is all zeroes.
pub(crate) fn read(memory: &GuestMemoryMmap, file: &File) -> io::Result<()> {
    let mut offset = 0;
    for region in memory.iter() {
        let end = offset + region.len();
        let mut at = offset;
        while let Some((start, stop)) = next_data(file, at, end)? {
            let length = usize::try_from(stop - start).map_err(io::Error::other)?;
            let into = region.get_slice(MemoryRegionAddress(start - offset), length);
            read_into(file, start, &into.map_err(io::Error::other)?)?;
            at = stop;
        }
        offset = end;
    }
    Ok(())
}

/// The first run of bytes that are there in `from..end`.
fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |from| match rustix::fs::seek(file, from) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    };
    let Some(start) = seek(SeekFrom::Data(from))?.filter(|&start| start < end) else { return Ok(None) };
    let stop = seek(SeekFrom::Hole(start))?.unwrap_or(end).min(end);
    Ok(Some((start, stop)))
}

fn read_into(mut file: &File, at: u64, into: &VolatileSlice<'_>) -> io::Result<()> {
    io::Seek::seek(&mut file, io::SeekFrom::Start(at))?;
    let mut done = 0;
    while done < into.len() {
        let mut rest = into.offset(done).map_err(io::Error::other)?;
        match file.read_volatile(&mut rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(())
}

/// Writes the pages of `piece` that are not all zeroes, neighbours by one call.
fn write_pages(piece: &[u8], file: &File, offset: u64) -> io::Result<()> {
    let has_contents = |page: &[u8]| page.iter().any(|&byte| byte != 0);
    let pages: Vec<&[u8]> = piece.chunks(PAGE).collect();
    let mut at = 0;
    for run in pages.chunk_by(|one, other| has_contents(one) == has_contents(other)) {
        let length: usize = run.iter().map(|page| page.len()).sum();
        if has_contents(run[0]) {
            file.write_all_at(&piece[at..at + length], offset + at as u64)?;
        }
        at += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;

    use vm_memory::GuestAddressSpace;

    use super::*;
    use crate::config::Contents;
    use crate::memory;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_was_written_comes_back_and_the_rest_costs_nothing() {
        let (ram, _reservation) = memory::allocate(64, false).unwrap();
        let ram = ram.memory();
        for (at, byte) in [(0, 1), (PAGE as u64 - 1, 2), (20 * MIB + 5, 3), (64 * MIB - 1, 4)] {
            ram.write_obj(byte as u8, GuestAddress(at)).unwrap();
        }
        let file = memory::memory_file("image", 0).unwrap();
        let part = |&(guest, host, length): &(u64, u64, u64)| Part {
            guest,
            host,
            length,
            offset: guest,
            anonymous: true,
        };
        let parts: Vec<Part> = memory::regions(&ram).iter().map(part).collect();
        write(&ram, &parts, &file, 64 * MIB).unwrap();
        assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().blocks()), (64 * MIB, 3 * 8));

        let shared: Arc<File> = file.try_clone().unwrap().into();
        let (copied, _reservation) = memory::restore(64, shared.clone(), Contents::Copied).unwrap();
        let copied = copied.memory();
        let byte = |at| copied.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!([0, PAGE as u64 - 1, 20 * MIB + 5, 64 * MIB - 1, 9].map(byte), [1, 2, 3, 4, 0]);

        let (again, _reservation) = memory::restore(64, shared, Contents::Mapped).unwrap();
        let again = again.memory();
        let byte = |at| again.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!([0, PAGE as u64 - 1, 20 * MIB + 5, 64 * MIB - 1].map(byte), [1, 2, 3, 4]);
        // What the guest writes from now on is its own.
        again.write_obj(9u8, GuestAddress(0)).unwrap();
        let mut first = [0];
        file.read_exact_at(&mut first, 0).unwrap();
        assert_eq!((byte(0), first), (9, [1]));
        // A page that came from the file and was not written to since is saved as well.
        let parts: Vec<Part> =
            memory::regions(&again).iter().map(|region| Part { anonymous: false, ..part(region) }).collect();
        let second = memory::memory_file("second", 0).unwrap();
        write(&again, &parts, &second, 64 * MIB).unwrap();
        let mut last = [0; 2];
        second.read_exact_at(&mut last, 64 * MIB - 2).unwrap();
        second.read_exact_at(&mut first, 0).unwrap();
        assert_eq!((first, last), ([9], [0, 4]));
    }
}
