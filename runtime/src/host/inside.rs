//! Work inside a container's file tree: on a thread of its own whose root directory is the container's, so that no
//! symbolic link, however fast a process of the container exchanges it, leads out of the tree.
//!
//! The thread's mount namespace is its own and ends with it. The tree is the one that the shim has mounted, or is
//! mounted there; the container's volumes are mounted in it.

use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use nix::sched::CloneFlags;
use rustix::mount::MountPropagationFlags;
use rustix::mount::MoveMountFlags;
use rustix::thread::LinkNameSpaceType;

use super::mount;
use super::mount::MountError;
use super::mount::failed;
use super::rootfs;
use super::rootfs::FsMount;

/// The root of a tree.
#[derive(Debug, Clone)]
pub enum TreeRoot {
    /// The root file system of a container that runs.
    Running {
        /// The process whose mount namespace has the tree mounted.
        pid: u32,
        /// Path of the tree in that namespace.
        path: PathBuf,
    },
    /// That of a container that does not run: the caller holds its lock.
    Resting {
        /// The mounts that the shim would make.
        rootfs: Vec<FsMount>,
        /// A directory to mount them at; nobody else sees that.
        at: PathBuf,
    },
    /// A plain directory.
    Directory(PathBuf),
}

/// A volume in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeVolume {
    /// Path on the host.
    pub source: PathBuf,
    /// Absolute path in the tree.
    pub destination: PathBuf,
    /// Not writable.
    pub read_only: bool,
}

/// A container's files.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The root.
    pub root: TreeRoot,
    /// Volumes, each after those above it.
    pub volumes: Vec<TreeVolume>,
}

/// Runs `work` inside the tree. Paths that it opens are the container's, and `/` is the container's root.
///
/// # Errors
/// The tree cannot be mounted or entered.
///
/// # Panics
/// If `work` panics.
pub fn inside<T: Send>(tree: &Tree, work: impl FnOnce() -> T + Send) -> Result<T, MountError> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            enter(tree)?;
            Ok(work())
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves this thread into the tree, from which there is no way back.
fn enter(tree: &Tree) -> Result<(), MountError> {
    let slash = Path::new("/");
    nix::sched::unshare(CloneFlags::CLONE_FS).map_err(failed("leave the process's", slash))?;
    if let TreeRoot::Running { pid, .. } = &tree.root {
        let path = PathBuf::from(format!("/proc/{pid}/ns/mnt"));
        let namespace = File::open(&path).map_err(failed("open", &path))?;
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Mount),
        )
        .map_err(failed("enter", &path))?;
    }
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace at", slash))?;
    rustix::mount::mount_change(slash, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("stop mounts from propagating from", slash))?;
    let root = match &tree.root {
        TreeRoot::Running { path, .. } | TreeRoot::Directory(path) => path,
        TreeRoot::Resting { rootfs, at } => {
            // They end with the namespace: by their paths they could not be found from the new root.
            std::mem::forget(rootfs::mount_all(rootfs, at)?);
            at
        }
    };
    // Found before the root changes, attached after it.
    let volumes: Vec<OwnedFd> = tree
        .volumes
        .iter()
        .map(|volume| mount::detached(&volume.source, true, volume.read_only))
        .collect::<Result<_, _>>()?;
    rustix::process::chroot(root).map_err(failed("enter", root))?;
    rustix::process::chdir("/").map_err(failed("enter", root))?;
    for (volume, mounted) in tree.volumes.iter().zip(&volumes) {
        let at = &volume.destination;
        make_mount_point(mounted, at).map_err(failed("make", at))?;
        mount::attach(mounted, at, MoveMountFlags::MOVE_MOUNT_T_SYMLINKS)?;
    }
    Ok(())
}

/// Makes the mount point of a volume, as the start of a container does.
fn make_mount_point(volume: &OwnedFd, at: &Path) -> io::Result<()> {
    if at.exists() {
        return Ok(());
    }
    let mode = rustix::fs::fstat(volume)?.st_mode;
    if rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Directory {
        return fs::create_dir_all(at);
    }
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent)?;
    }
    File::options().append(true).create(true).open(at).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Needs root, as the whole suite does.
    #[test]
    fn links_lead_nowhere_else_and_volumes_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        for name in ["root/etc", "root/real", "volume"] {
            fs::create_dir_all(top.join(name)).unwrap();
        }
        fs::write(top.join("secret"), "outside").unwrap();
        fs::write(top.join("root/secret"), "inside").unwrap();
        symlink("/secret", top.join("root/absolute")).unwrap();
        symlink("../../../../secret", top.join("root/etc/climbing")).unwrap();
        symlink(top.join("secret"), top.join("root/etc/out")).unwrap();
        symlink("/real", top.join("root/linked")).unwrap();
        fs::write(top.join("volume/file"), "volume").unwrap();
        let volume = |destination: &str, read_only| TreeVolume {
            source: top.join("volume"),
            destination: destination.into(),
            read_only,
        };
        let tree = Tree {
            root: TreeRoot::Directory(top.join("root")),
            volumes: vec![volume("/linked/deep", true), volume("/data", false)],
        };
        let read = |path: &str| fs::read_to_string(path).map_err(|error| error.kind());
        let found = inside(&tree, || {
            let written = fs::write("/linked/deep/new", "x").map_err(|error| error.kind());
            assert_eq!(written, Err(io::ErrorKind::ReadOnlyFilesystem));
            fs::write("/data/new", "x").unwrap();
            ["/absolute", "/etc/climbing", "/etc/out", "/real/deep/file"].map(read)
        })
        .unwrap();
        let inside = |text: &str| Ok(text.to_owned());
        let expected = [inside("inside"), inside("inside"), Err(io::ErrorKind::NotFound), inside("volume")];
        assert_eq!(found, expected);
        // This thread is where it was, and the mounts are gone.
        assert_eq!(fs::read_to_string(top.join("volume/new")).unwrap(), "x");
        assert!(fs::read_dir(top.join("root/data")).unwrap().next().is_none());
    }
}
