//! A path in a container, resolved once to an open directory and a name in it.
//!
//! Links are followed by their text and from the given root, so that a link in /proc does not lead to another process's
//! files. Operations go through the open directory, whatever the container does to the path meanwhile.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Dev, FileType, Gid, Mode, OFlags, Uid, chownat, mkdirat, mknodat, openat, readlinkat, statat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

/// The number of links that are followed, as in the kernel.
const MOST_LINKS: usize = 40;
const DIRECTORY: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory and a name in it, which need not exist.
pub(super) struct ContainerPath {
    directory: OwnedFd,
    name: OsString,
    made: Vec<Made>,
}

/// A directory or file that was made for a path.
struct Made {
    directory: OwnedFd,
    name: OsString,
    is_directory: bool,
}

impl ContainerPath {
    /// Resolves `path` below `root`. With `make`, missing directories on the way are made; [`ContainerPath::unmake`]
    /// removes them.
    pub(super) fn resolve(root: BorrowedFd<'_>, path: &Path, make: bool) -> Result<Self, Errno> {
        let mut made = Vec::new();
        match walk(root, path, make, &mut made) {
            Ok((directory, name)) => Ok(Self { directory, name, made }),
            Err(errno) => {
                unmake(made);
                Err(errno)
            }
        }
    }

    /// Makes a directory or a file at the path, unless one exists; an error if the path is of the other kind.
    pub(super) fn make(&mut self, is_directory: bool) -> Result<(), Errno> {
        match self.stat() {
            Ok(found) if FileType::from_raw_mode(found.st_mode).is_dir() == is_directory => return Ok(()),
            Ok(_) => return Err(if is_directory { Errno::NOTDIR } else { Errno::ISDIR }),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        if is_directory {
            mkdirat(&self.directory, &self.name, Mode::from_raw_mode(0o755))?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&self.directory, &self.name, flags, Mode::from_raw_mode(0o644))?;
        }
        self.record(is_directory)
    }

    /// Makes a device node at the path, which must not exist.
    pub(super) fn make_node(&mut self, kind: FileType, mode: Mode, number: Dev) -> Result<(), Errno> {
        mknodat(&self.directory, &self.name, kind, mode, number)?;
        self.record(false)
    }

    /// Changes the owner and group of the file at the path.
    pub(super) fn chown(&self, uid: u32, gid: u32) -> Result<(), Errno> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(&self.directory, &self.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn record(&mut self, is_directory: bool) -> Result<(), Errno> {
        let directory = rustix::io::fcntl_dupfd_cloexec(&self.directory, 0)?;
        self.made.push(Made { directory, name: self.name.clone(), is_directory });
        Ok(())
    }

    /// Removes the files and directories that were made, the last first, and stops at one that is in use.
    pub(super) fn unmake(self) {
        unmake(self.made);
    }

    /// Removes the file at the path.
    pub(super) fn remove(&self) -> Result<(), Errno> {
        unlinkat(&self.directory, &self.name, AtFlags::empty())
    }

    /// The attributes of the file at the path; a link is not followed.
    pub(super) fn stat(&self) -> Result<rustix::fs::Stat, Errno> {
        statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Mounts a detached tree at the path.
    pub(super) fn mount(&self, tree: impl AsFd) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(&self.directory, &self.name, flags, Mode::empty())?;
        let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(tree, "", &target, "", how)
    }

    /// Unmounts the mount at the path. Nothing of this process keeps the mount busy: only the working directory is left
    /// open, which is above it.
    pub(super) fn unmount(self, flags: UnmountFlags) -> Result<(), Errno> {
        rustix::process::fchdir(&self.directory)?;
        drop(self.directory);
        unmount(&self.name, flags | UnmountFlags::NOFOLLOW)?;
        unmake(self.made);
        Ok(())
    }
}

fn unmake(made: Vec<Made>) {
    for Made { directory, name, is_directory } in made.into_iter().rev() {
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        if unlinkat(&directory, &name, flags).is_err() {
            break;
        }
    }
}

fn walk(
    root: BorrowedFd<'_>,
    path: &Path,
    make: bool,
    made: &mut Vec<Made>,
) -> Result<(OwnedFd, OsString), Errno> {
    let root = || rustix::io::fcntl_dupfd_cloexec(root, 0);
    let mut above = Vec::new();
    let mut directory = root()?;
    let mut ahead: VecDeque<OsString> = parts(path).collect();
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        if part == OsStr::new("/") {
            above.clear();
            directory = root()?;
            continue;
        }
        if part == OsStr::new("..") {
            // The parent of the root is the root.
            directory = above.pop().unwrap_or(directory);
            continue;
        }
        match readlinkat(&directory, &part, Vec::new()) {
            Ok(link) => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP);
                }
                let link = PathBuf::from(OsString::from_vec(link.into_bytes()));
                let link_parts: Vec<_> = parts(&link).collect();
                link_parts.into_iter().rev().for_each(|part| ahead.push_front(part));
                continue;
            }
            Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        if ahead.is_empty() {
            return Ok((directory, part));
        }
        let next = match openat(&directory, &part, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) if make => {
                mkdirat(&directory, &part, Mode::from_raw_mode(0o755))?;
                let parent = rustix::io::fcntl_dupfd_cloexec(&directory, 0)?;
                made.push(Made { directory: parent, name: part.clone(), is_directory: true });
                openat(&directory, &part, DIRECTORY, Mode::empty())?
            }
            opened => opened?,
        };
        above.push(std::mem::replace(&mut directory, next));
    }
    // The path ends in `..` or is the root, and so has no name.
    Err(Errno::INVAL)
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components()
        .filter(|part| !matches!(part, Component::CurDir))
        .map(|part| part.as_os_str().to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::fs::File;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Resolves a path below a folder and makes a file there.
    fn make(folder: &Path, path: &str) -> Result<ContainerPath, Errno> {
        let root = File::open(folder).unwrap();
        let mut place = ContainerPath::resolve(root.as_fd(), Path::new(path), true)?;
        if let Err(errno) = place.make(false) {
            place.unmake();
            return Err(errno);
        }
        Ok(place)
    }

    #[test]
    fn links_lead_to_paths_below_the_root_only() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("real/deep")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        symlink("/real", root.join("absolute")).unwrap();
        symlink("../../../../outside", root.join("climbs")).unwrap();
        symlink("deep/file", root.join("real/last")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for (path, file) in [
            ("/absolute/a", "real/a"),
            ("/absolute/deep/../../b", "b"),
            ("/climbs/c", "outside/c"),
            ("/real/last", "real/deep/file"),
            ("/../d", "d"),
        ] {
            make(&root, path).unwrap();
            assert!(root.join(file).is_file(), "{path}");
        }
        assert_eq!(fs::read_dir(folder.path().join("outside")).unwrap().count(), 0);
        assert_eq!(make(&root, "/loop/x").err(), Some(Errno::LOOP));
        assert_eq!(make(&root, "/b/x").err(), Some(Errno::NOTDIR));
        assert_eq!(make(&root, "/real").err(), Some(Errno::ISDIR));
        assert_eq!(make(&root, "/").err(), Some(Errno::INVAL));
    }

    #[test]
    fn a_link_of_the_kernels_leads_by_its_text() {
        // Its text is the path of this test's own root; what it would lead to is another process's.
        let link = fs::read_link("/proc/self/root").unwrap();
        assert_eq!(link, Path::new("/"));
        let root = File::open("/").unwrap();
        let place =
            ContainerPath::resolve(root.as_fd(), Path::new("/proc/self/root/nowhere"), false).unwrap();
        let slash = fs::metadata("/").unwrap();
        let found = rustix::fs::fstat(&place.directory).unwrap();
        assert_eq!(found.st_ino, std::os::unix::fs::MetadataExt::ino(&slash));
    }

    #[test]
    fn unmake_removes_what_was_made_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("there")).unwrap();
        make(root.path(), "/there/new/er/file").unwrap().unmake();
        assert_eq!(fs::read_dir(root.path().join("there")).unwrap().count(), 0);
        let place = make(root.path(), "/there/new/file").unwrap();
        fs::write(root.path().join("there/new/other"), "").unwrap();
        place.unmake();
        assert!(root.path().join("there/new/other").exists());
        assert!(!root.path().join("there/new/file").exists());
        assert_eq!(make(root.path(), "/there/new/other/x/y").err(), Some(Errno::NOTDIR));
    }
}
