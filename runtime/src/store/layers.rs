//! Reads a file of a container's root file system without mounting it.
//!
//! The layers are searched from the top, with whiteouts and opaque directories. This module follows symbolic links
//! itself, inside the container's tree, so that no link leads out of it. The content is hostile: lengths, numbers of
//! links and file types are checked.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Maximum number of links on the path of one file, the same as the kernel's.
const MOST_LINKS: usize = 40;

/// A file of a container cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The kernel refused.
    #[error("cannot read {path} in the image")]
    Io {
        /// Path in the container.
        path: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The links form a loop or a very long chain.
    #[error("{0} in the image leads through more than {MOST_LINKS} symbolic links")]
    Links(String),
    /// The file is a directory, a device or a fifo.
    #[error("{0} in the image is not a regular file")]
    NotAFile(String),
    /// The file exceeds the caller's limit.
    #[error("{path} in the image is larger than {most} bytes")]
    TooLarge {
        /// Path in the container.
        path: String,
        /// The limit in bytes.
        most: usize,
    },
}

/// One directory of the merged tree: the same directory in every layer that has it, topmost first.
type Merged = Vec<OwnedFd>;

/// An entry of a merged directory.
enum Entry {
    Missing,
    Directory(Merged),
    Link(PathBuf),
    File(OwnedFd),
    Other,
}

/// Reads the file at `path` (relative to the root) from `layers`, topmost first; none if there is no such
/// file.
///
/// # Errors
/// The file cannot be read, is not a regular file, or is larger than `most` bytes.
pub fn read_file(layers: &[PathBuf], path: &str, most: usize) -> Result<Option<Vec<u8>>, LayerError> {
    let failed = |source: io::Error| LayerError::Io { path: path.to_owned(), source };
    match find(layers, path).map_err(|errno| match errno {
        Errno::LOOP => LayerError::Links(path.to_owned()),
        errno => failed(errno.into()),
    })? {
        Entry::File(fd) => {
            let mut content = Vec::new();
            let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
            File::from(fd).take(limit).read_to_end(&mut content).map_err(failed)?;
            if content.len() > most {
                return Err(LayerError::TooLarge { path: path.to_owned(), most });
            }
            Ok(Some(content))
        }
        Entry::Missing => Ok(None),
        Entry::Directory(_) | Entry::Link(_) | Entry::Other => Err(LayerError::NotAFile(path.to_owned())),
    }
}

fn open_directory(parent: impl AsFd, name: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn words_of(path: &Path) -> Vec<PathBuf> {
    // In reverse: the last is taken first.
    let mut words: Vec<PathBuf> =
        path.iter().filter(|word| *word != "/" && *word != ".").map(PathBuf::from).collect();
    words.reverse();
    words
}

fn find(layers: &[PathBuf], path: &str) -> Result<Entry, Errno> {
    let root = || -> Result<Merged, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        layers.iter().map(|layer| rustix::fs::openat(CWD, layer, flags, Mode::empty())).collect()
    };
    let mut above: Vec<Merged> = vec![root()?];
    let mut words = words_of(Path::new(path));
    let mut links = 0;
    while let Some(word) = words.pop() {
        if word == Path::new("..") {
            // The parent of the root is the root.
            if above.len() > 1 {
                above.pop();
            }
            continue;
        }
        let here = above.last().expect("the root is never popped");
        match look_up(here, &word)? {
            Entry::Directory(merged) => above.push(merged),
            Entry::Link(target) => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP);
                }
                if target.is_absolute() {
                    above.truncate(1);
                }
                words.extend(words_of(&target));
            }
            Entry::Missing => return Ok(Entry::Missing),
            // A path through a file does not exist.
            Entry::File(_) | Entry::Other if !words.is_empty() => return Ok(Entry::Missing),
            found => return Ok(found),
        }
    }
    Ok(Entry::Other)
}

fn look_up(here: &Merged, name: &Path) -> Result<Entry, Errno> {
    let mut merged: Merged = Vec::new();
    for directory in here {
        let stat = match rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let opened = open_directory(directory, name)?;
            let opaque = is_opaque(&opened)?;
            merged.push(opened);
            if opaque {
                break;
            }
            continue;
        }
        if !merged.is_empty() {
            // A directory above hides it.
            break;
        }
        return Ok(match kind {
            // A whiteout.
            FileType::CharacterDevice if stat.st_rdev == 0 => Entry::Missing,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
                Entry::Link(PathBuf::from(OsString::from_vec(target.into_bytes())))
            }
            FileType::RegularFile => {
                let flags =
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
                // The guest may have replaced the file meanwhile.
                let is_file =
                    FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile;
                if is_file { Entry::File(file) } else { Entry::Other }
            }
            _ => Entry::Other,
        });
    }
    Ok(if merged.is_empty() { Entry::Missing } else { Entry::Directory(merged) })
}

fn is_opaque(directory: &OwnedFd) -> Result<bool, Errno> {
    let mut value = [0_u8; 8];
    match rustix::fs::fgetxattr(directory, c"trusted.overlay.opaque", &mut value) {
        Ok(length) => Ok(value.get(..length) == Some(b"y")),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn layers() -> (TempDir, Vec<PathBuf>) {
        let temporary = TempDir::new().unwrap();
        let layers: Vec<PathBuf> = ["top", "middle", "bottom"].map(|name| temporary.path().join(name)).into();
        for layer in &layers {
            fs::create_dir_all(layer.join("etc")).unwrap();
        }
        (temporary, layers)
    }

    fn read(layers: &[PathBuf], path: &str) -> Option<String> {
        read_file(layers, path, 1000).unwrap().map(|content| String::from_utf8(content).unwrap())
    }

    #[test]
    fn the_topmost_file_is_read() {
        let (_keep, layers) = layers();
        fs::write(layers[2].join("etc/passwd"), "bottom").unwrap();
        assert_eq!(read(&layers, "etc/passwd").as_deref(), Some("bottom"));
        fs::write(layers[1].join("etc/passwd"), "middle").unwrap();
        assert_eq!(read(&layers, "/etc/./passwd").as_deref(), Some("middle"));
        assert_eq!(read(&layers, "etc/group"), None);
        assert_eq!(read(&layers, "etc/passwd/x"), None);
    }

    #[test]
    fn links_stay_inside_and_cross_layers() {
        let (_keep, layers) = layers();
        fs::create_dir_all(layers[2].join("usr/etc")).unwrap();
        fs::write(layers[2].join("usr/etc/passwd"), "inside").unwrap();
        symlink("/usr/etc/passwd", layers[0].join("etc/passwd")).unwrap();
        assert_eq!(read(&layers, "etc/passwd").as_deref(), Some("inside"));
        symlink("../../../../../../usr/etc/passwd", layers[0].join("etc/up")).unwrap();
        assert_eq!(read(&layers, "etc/up").as_deref(), Some("inside"));
        // A host file of that name exists, the image's does not.
        symlink("/proc/self/status", layers[0].join("etc/out")).unwrap();
        assert_eq!(read(&layers, "etc/out"), None);
    }

    #[test]
    fn circles_fifos_and_giants_are_errors() {
        let (_keep, layers) = layers();
        symlink("b", layers[0].join("a")).unwrap();
        symlink("a", layers[0].join("b")).unwrap();
        assert!(matches!(read_file(&layers, "a", 10), Err(LayerError::Links(_))));
        rustix::fs::mknodat(CWD, layers[0].join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(read_file(&layers, "fifo", 10), Err(LayerError::NotAFile(_))));
        assert!(matches!(read_file(&layers, "etc", 10), Err(LayerError::NotAFile(_))));
        fs::write(layers[0].join("big"), "01234567890").unwrap();
        assert!(matches!(read_file(&layers, "big", 10), Err(LayerError::TooLarge { .. })));
    }

    #[test]
    fn whiteouts_and_opaque_directories_hide() {
        let (_keep, layers) = layers();
        fs::write(layers[2].join("etc/passwd"), "bottom").unwrap();
        fs::write(layers[2].join("etc/group"), "bottom").unwrap();
        let whiteout =
            rustix::fs::mknodat(CWD, layers[1].join("etc/passwd"), FileType::CharacterDevice, Mode::RUSR, 0);
        if whiteout == Err(Errno::PERM) {
            panic!("making a whiteout needs CAP_MKNOD: run this test as root");
        }
        whiteout.unwrap();
        assert_eq!(read(&layers, "etc/passwd"), None);
        assert_eq!(read(&layers, "etc/group").as_deref(), Some("bottom"));
        xattr::set(layers[1].join("etc"), "trusted.overlay.opaque", b"y").unwrap();
        assert_eq!(read(&layers, "etc/group"), None);
    }
}
