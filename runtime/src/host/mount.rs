#![expect(unsafe_code, reason = "mount_setattr has no wrapper")]
//! Mounts in the process's own mount namespace. Dropping the value that stands for a mount unmounts it.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::mount::MountFlags;
use rustix::mount::MountPropagationFlags;
use rustix::mount::MoveMountFlags;
use rustix::mount::OpenTreeFlags;
use rustix::mount::UnmountFlags;

/// Why a mount was not made.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}")]
pub struct MountError {
    /// The step that failed, as a verb.
    pub step: &'static str,
    /// The path it was for.
    pub path: PathBuf,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

pub(super) fn failed<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> MountError {
    move |source| MountError { step, path: path.into(), source: source.into() }
}

/// A mount; dropping it unmounts it.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn at(path: &Path) -> Self {
        Self(path.into())
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Detached, because the virtio-fs server may have files of it open until the guest forgets them.
        if let Err(error) = rustix::mount::unmount(&self.0, UnmountFlags::DETACH) {
            tracing::warn!(path = %self.0.display(), %error, "unmount");
        }
    }
}

/// Moves this process to a mount namespace of its own: its mounts are visible nowhere else and end with the process,
/// while mounts and unmounts of the host still propagate to it. To be called while the process has one thread.
pub fn enter_own_namespace() -> Result<(), MountError> {
    let root = Path::new("/");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(failed("make a mount namespace at", root))?;
    rustix::mount::mount_change(root, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(failed("stop mounts from propagating from", root))
}

/// Mounts a small tmpfs for mount points.
pub fn small_tmpfs(at: &Path) -> Result<Mounted, MountError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("kiai", at, "tmpfs", flags, c"size=4m,nr_inodes=65536,mode=0700")
        .map_err(failed("mount a tmpfs on", at))?;
    let mounted = Mounted::at(at);
    // Shared, so that later mounts below it propagate to the guest's view.
    rustix::mount::mount_change(at, MountPropagationFlags::SHARED)
        .map_err(failed("share mounts below", at))?;
    Ok(mounted)
}

/// Mounts a read-only view of `source`, to which later mounts below `source` propagate.
pub fn read_only_view(source: &Path, at: &Path) -> Result<Mounted, MountError> {
    rustix::mount::mount_bind_recursive(source, at).map_err(failed("bind to", at))?;
    let mounted = Mounted::at(at);
    rustix::mount::mount_change(at, MountPropagationFlags::DOWNSTREAM)
        .map_err(failed("follow mounts below", at))?;
    remount_read_only(at)?;
    Ok(mounted)
}

/// Binds `source` to `at`, both files or both directories; `read_only` applies to the mounts below it, too.
///
/// The mount is made read-only before it is attached at `at`: it propagates to the guest's view at that moment, and a
/// later change of flags would not.
pub fn bind(source: &Path, at: &Path, recursive: bool, read_only: bool) -> Result<Mounted, MountError> {
    let tree = detached(source, recursive, read_only)?;
    attach(&tree, at, MoveMountFlags::empty())?;
    Ok(Mounted::at(at))
}

/// A copy of the mount of `source` that is not attached anywhere.
pub(super) fn detached(source: &Path, recursive: bool, read_only: bool) -> Result<OwnedFd, MountError> {
    let mut how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        how |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(rustix::fs::CWD, source, how).map_err(failed("bind", source))?;
    if read_only {
        set_read_only(&tree).map_err(failed("make read-only", source))?;
    }
    Ok(tree)
}

/// Attaches a detached mount at `at`.
pub(super) fn attach(tree: &OwnedFd, at: &Path, flags: MoveMountFlags) -> Result<(), MountError> {
    let flags = flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", rustix::fs::CWD, at, flags).map_err(failed("bind to", at))
}

/// Makes a detached tree read-only with mount_setattr(2).
fn set_read_only(tree: &OwnedFd) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is an empty C string, and the structure has the size that is passed with it; both outlive
    // the call, which keeps neither.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes one mount read-only; its other flags, and other mounts of the file system, do not change.
fn remount_read_only(at: &Path) -> Result<(), MountError> {
    let kept = kept_flags(at).map_err(failed("read the mount flags of", at))?;
    rustix::mount::mount_remount(at, MountFlags::BIND | MountFlags::RDONLY | kept, c"")
        .map_err(failed("make read-only", at))
}

/// The flags of a mount, which a bind remount has to repeat.
fn kept_flags(at: &Path) -> io::Result<MountFlags> {
    use rustix::fs::StatVfsMountFlags as Stat;
    let have = rustix::fs::statvfs(at)?.f_flag;
    let mut keep = MountFlags::empty();
    for (stat, flag) in [
        (Stat::NOSUID, MountFlags::NOSUID),
        (Stat::NODEV, MountFlags::NODEV),
        (Stat::NOEXEC, MountFlags::NOEXEC),
        (Stat::NOATIME, MountFlags::NOATIME),
        (Stat::NODIRATIME, MountFlags::NODIRATIME),
        (Stat::RELATIME, MountFlags::RELATIME),
    ] {
        if have.contains(stat) {
            keep |= flag;
        }
    }
    Ok(keep)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root, as the whole suite does; the mounts are in a namespace of the test's thread.
    #[test]
    fn a_read_only_bind_is_read_only_in_the_view_and_below() {
        std::thread::spawn(|| {
            enter_own_namespace().unwrap();
            let top = tempfile::tempdir().unwrap();
            let make = |name: &str| {
                let path = top.path().join(name);
                std::fs::create_dir_all(&path).unwrap();
                path
            };
            let (source, shared, view) = (make("source"), make("shared"), make("view"));
            let below = make("source/below");
            let _below = small_tmpfs(&below).unwrap();
            let _shared = small_tmpfs(&shared).unwrap();
            let _view = read_only_view(&shared, &view).unwrap();
            for (name, read_only) in [("kept", true), ("changed", false)] {
                let at = make(&format!("shared/{name}"));
                let bound = bind(&source, &at, true, read_only).unwrap();
                for inside in ["file", "below/file"] {
                    let written = std::fs::write(view.join(name).join(inside), "x");
                    let refused = written.map_err(|error| error.kind());
                    let expected = if read_only { Err(io::ErrorKind::ReadOnlyFilesystem) } else { Ok(()) };
                    assert_eq!(refused, expected, "{name}/{inside}");
                }
                drop(bound);
            }
        })
        .join()
        .unwrap();
    }
}
