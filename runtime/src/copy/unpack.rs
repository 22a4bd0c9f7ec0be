//! Unpacks an archive into a directory.

use std::io;
use std::io::Read;
use std::path::Path;

use tar::Archive;
use tar::EntryType;

/// The result of an unpacking.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Paths of device nodes and fifos, which are not made.
    pub left_out: Vec<String>,
}

/// Unpacks an archive into the directory `into`. Files get the owners of the archive with `owners`, otherwise those of
/// this process. An entry never leads out of the directory: not by its name, nor by a link that the archive brought.
///
/// # Errors
/// The archive is damaged, an entry leads out, or a file cannot be written.
pub fn unpack(from: impl Read, into: &Path, owners: bool) -> io::Result<Unpacked> {
    let mut archive = Archive::new(from);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(owners);
    archive.set_overwrite(true);
    let mut unpacked = Unpacked::default();
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        match entry.header().entry_type() {
            // Last, because a mode may forbid to write below, and writing changes the time.
            EntryType::Directory => {
                directories.push((name, entry));
                continue;
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                unpacked.left_out.push(name);
                continue;
            }
            _ => {}
        }
        let inside = entry.unpack_in(into).map_err(|error| named(&name, &error))?;
        refuse_outside(inside, &name)?;
    }
    // Those below first.
    directories.sort_by(|(one, _), (other, _)| other.cmp(one));
    for (name, mut entry) in directories {
        let inside = entry.unpack_in(into).map_err(|error| named(&name, &error))?;
        refuse_outside(inside, &name)?;
    }
    Ok(unpacked)
}

fn refuse_outside(inside: bool, name: &str) -> io::Result<()> {
    if inside {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name}: the entry leads out of the directory")))
}

fn named(name: &str, error: &io::Error) -> io::Error {
    // The crate's messages name the path and keep the reason as their source.
    let reason = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    io::Error::new(error.kind(), format!("{name}: {error}{reason}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;
    use rustix::fs::FileType;
    use rustix::fs::Mode;

    use super::*;
    use crate::copy::pack;

    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        fs::create_dir_all(top.join("from/sub/empty")).unwrap();
        fs::write(top.join("from/file"), "content").unwrap();
        fs::set_permissions(top.join("from/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::write(top.join("from/sub").join("n".repeat(180)), "long").unwrap();
        symlink("/etc/passwd", top.join("from/sub/out")).unwrap();
        fs::set_permissions(top.join("from/sub"), fs::Permissions::from_mode(0o555)).unwrap();
        fs::create_dir(top.join("to")).unwrap();
        folder
    }

    #[test]
    fn a_tree_arrives_as_it_was() {
        let folder = tree();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for name in ["copy", "."] {
            let mut archive = Vec::new();
            pack(&from, Path::new(name), &mut archive).unwrap();
            assert_eq!(unpack(&archive[..], &to, false).unwrap(), Unpacked::default());
            let copy = to.join(name);
            assert_eq!(fs::read_to_string(copy.join("file")).unwrap(), "content");
            assert_eq!(fs::metadata(copy.join("file")).unwrap().mode() & 0o7777, 0o4751);
            assert_eq!(fs::read_to_string(copy.join("sub").join("n".repeat(180))).unwrap(), "long");
            assert_eq!(fs::read_link(copy.join("sub/out")).unwrap(), Path::new("/etc/passwd"));
            assert_eq!(fs::metadata(copy.join("sub")).unwrap().mode() & 0o777, 0o555);
            assert!(copy.join("sub/empty").is_dir());
            // A second copy replaces the first.
            unpack(&archive[..], &to, false).unwrap();
        }
    }

    #[test]
    fn fifos_are_named_and_left_out() {
        let folder = tree();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        rustix::fs::mknodat(CWD, from.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let mut archive = Vec::new();
        pack(&from, Path::new("x"), &mut archive).unwrap();
        assert_eq!(unpack(&archive[..], &to, false).unwrap().left_out, ["x/pipe"]);
        assert!(to.join("x/file").exists());
    }

    #[test]
    fn an_entry_does_not_lead_out() {
        let folder = tempfile::tempdir().unwrap();
        let (into, outside) = (folder.path().join("into"), folder.path().join("outside"));
        fs::create_dir(&into).unwrap();
        fs::create_dir(&outside).unwrap();
        let mut through = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        through.append_link(&mut header, "link", &outside).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        through.append_data(&mut header, "link/file", &b"x"[..]).unwrap();
        let mut climbing = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..7].copy_from_slice(b"../file");
        header.set_size(1);
        header.set_cksum();
        climbing.append(&header, &b"x"[..]).unwrap();
        for archive in [through.into_inner().unwrap(), climbing.into_inner().unwrap()] {
            assert!(unpack(&archive[..], &into, false).is_err());
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
            assert!(!folder.path().join("file").exists());
        }
    }
}
