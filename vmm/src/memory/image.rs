//! Guest RAM in a file, page by page where the guest has it: first what it booted with, then the region in which it can
//! be plugged. Pages that nobody has written to are holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;

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

    use vm_memory::GuestAddressSpace;

    use super::*;
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

        let (again, _reservation) = memory::restore(64, file.try_clone().unwrap().into()).unwrap();
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
