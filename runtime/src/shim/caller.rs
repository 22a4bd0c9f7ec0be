//! Which containerd calls: its program says of which module it was built (Go's build information, an ELF section).
//!
//! Only so can containerd 2.0 to 2.2, which use version 3 of the Task service, be told from 1.7, which refuses it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The section with the build information.
const SECTION: &[u8] = b".go.buildinfo";
/// The main package of every program of containerd 2.
const CONTAINERD_2: &[u8] = b"path\tgithub.com/containerd/containerd/v2/";

/// More than any section that is read here has.
const MOST_BYTES: u64 = 1 << 20;

/// Whether a program is one of containerd 2; false if that cannot be told.
pub(super) fn is_containerd_2(program: &Path) -> bool {
    let found = File::open(program).and_then(|file| section(&file));
    found.is_ok_and(|bytes| bytes.windows(CONTAINERD_2.len()).any(|window| window == CONTAINERD_2))
}

/// The content of the section (ELF-64, little-endian: elf(5)).
fn section(file: &File) -> io::Result<Vec<u8>> {
    let header = read(file, 0, 64)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let table = number(&header, 0x28, 8);
    let (size, count, names) = (number(&header, 0x3a, 2), number(&header, 0x3c, 2), number(&header, 0x3e, 2));
    if size < 64 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let headers = read(file, table, size * count)?;
    let content = |header: &[u8]| read(file, number(header, 0x18, 8), number(header, 0x20, 8));
    let all = || headers.chunks_exact(usize::try_from(size).unwrap_or(usize::MAX));
    let names = all().nth(usize::try_from(names).unwrap_or(usize::MAX));
    let names = content(names.ok_or(io::ErrorKind::InvalidData)?)?;
    let named = |header: &&[u8]| {
        let name = usize::try_from(number(header, 0, 4)).ok().and_then(|start| names.get(start..));
        name.is_some_and(|name| name.strip_prefix(SECTION).is_some_and(|rest| rest.first() == Some(&0)))
    };
    content(all().find(named).ok_or(io::ErrorKind::NotFound)?)
}

fn read(file: &File, at: u64, length: u64) -> io::Result<Vec<u8>> {
    if length > MOST_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// A little-endian number of a header, which is long enough.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A program with a section of names and one with `information`.
    fn program(information: &[u8]) -> Vec<u8> {
        let names = [b"\0", SECTION, b"\0"].concat();
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        let put = |bytes: &mut Vec<u8>, at: usize, number: u64, length: usize| {
            bytes[at..at + length].copy_from_slice(&number.to_le_bytes()[..length]);
        };
        for (at, number, length) in [(0x28, 64, 8), (0x3a, 64, 2), (0x3c, 2, 2), (0x3e, 0, 2)] {
            put(&mut bytes, at, number, length);
        }
        bytes.resize(192, 0);
        let sections = [(0, 192, names.len()), (1, 192 + names.len(), information.len())];
        for ((name, offset, length), at) in sections.into_iter().zip([64, 128]) {
            put(&mut bytes, at, name, 4);
            put(&mut bytes, at + 0x18, offset as u64, 8);
            put(&mut bytes, at + 0x20, length as u64, 8);
        }
        [bytes, names, information.to_vec()].concat()
    }

    fn is_2(bytes: &[u8]) -> bool {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        is_containerd_2(file.path())
    }

    #[test]
    fn containerd_is_known_by_its_main_package() {
        let built = |of: &str| program(format!("go1.27.1 path\tgithub.com/{of}\nbuild\t").as_bytes());
        assert!(is_2(&built("containerd/containerd/v2/cmd/containerd")));
        assert!(!is_2(&built("containerd/containerd/cmd/containerd")), "1.7");
        assert!(!is_2(&built("k3s-io/k3s/cmd/server")));
        assert!(!is_containerd_2(Path::new("/does/not/exist")));
        assert!(!is_containerd_2(&std::env::current_exe().unwrap()), "no program in Go");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_program_or_none(flips in prop::collection::vec((0usize..192, any::<u8>()), 0..8)) {
            let mut bytes = program(b"x");
            for (at, byte) in flips {
                bytes[at] = byte;
            }
            prop_assert!(!is_2(&bytes));
        }
    }
}
