//! Makes and undoes a planned mount, with the kernel's mount API of fsopen(2) and open_tree(2).
//!
//! That API takes parameters one by one, so that neither a comma in a path nor a long list of layers is a problem, and
//! it reports errors as text.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_remount, move_mount,
    open_tree, unmount,
};

use super::source::Plan;

/// Longest string fsconfig(2) takes, without its NUL.
const LONGEST_STRING: usize = 255;

/// Why a mount was not made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A step of the kernel's mount API failed.
    #[error("{step}: {errno}{said}")]
    Kernel {
        /// The step.
        step: String,
        /// The kernel's error.
        errno: Errno,
        /// The kernel's messages, each after a semicolon.
        said: String,
    },
    /// The mount point could not be made.
    #[error("make the mount point")]
    MountPoint(#[source] std::io::Error),
}

/// Mounts `plan` on `target`, whose directories are made. Returns the topmost path that was made for it.
pub(super) fn apply(plan: &Plan, target: &Path) -> Result<Option<PathBuf>, MountError> {
    let tree = match plan {
        Plan::New { fstype, parameters, attributes } => new_file_system(fstype, parameters, *attributes)?,
        Plan::Bind { source, recursive, .. } => {
            let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            if *recursive {
                flags |= OpenTreeFlags::AT_RECURSIVE;
            }
            open_tree(CWD, source, flags).map_err(kernel(format!("open {source:?}"), None))?
        }
    };
    let directory = match plan {
        Plan::Bind { source, .. } => source.is_dir(),
        Plan::New { .. } => true,
    };
    let made = make(target, directory).map_err(MountError::MountPoint)?;
    let mounted = attach(&tree, target).and_then(|()| match plan {
        Plan::Bind { attributes, .. } if !attributes.is_empty() => restrict(target, *attributes),
        _ => Ok(()),
    });
    if let Err(error) = mounted {
        let _ = undo(target, made.as_deref());
        return Err(error);
    }
    Ok(made)
}

/// Unmounts `target` and removes what was made for it. A busy mount is detached; the error still says so.
pub(super) fn undo(target: &Path, made: Option<&Path>) -> Result<(), Errno> {
    let result = match unmount(target, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => {
            unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).and(Err(Errno::BUSY))
        }
        // It is not mounted: `apply` failed before the mount.
        Err(Errno::INVAL) => Ok(()),
        other => other,
    };
    if let Some(made) = made {
        let mut next = Some(target);
        while let Some(path) = next {
            // Only a file or an empty directory is removed.
            if std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path)).is_err() || path == made {
                break;
            }
            next = path.parent();
        }
    }
    result
}

/// A detached mount of a new file system. Parameters are set in order: a key, and a value unless it is a flag.
pub(crate) fn new_file_system(
    fstype: &str,
    parameters: &[(String, Option<String>)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, MountError> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(kernel(format!("file system {fstype:?}"), None))?;
    let mut kept = Vec::new();
    for (key, value) in parameters {
        let set = match value {
            None => fsconfig_set_flag(context.as_fd(), key.as_str()),
            Some(value) => {
                let value = shorten(value, &mut kept)?;
                fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str())
            }
        };
        set.map_err(kernel(format!("{fstype} option {key:?}"), Some(context.as_fd())))?;
    }
    fsconfig_create(context.as_fd()).map_err(kernel(format!("mount {fstype}"), Some(context.as_fd())))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(kernel(format!("mount {fstype}"), Some(context.as_fd())))
}

/// A short path for one that is too long for fsconfig(2): that of a descriptor open on it.
fn shorten(value: &str, kept: &mut Vec<OwnedFd>) -> Result<String, MountError> {
    if value.len() <= LONGEST_STRING {
        return Ok(value.to_owned());
    }
    let file = rustix::fs::open(value, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(kernel(format!("open {value:?}"), None))?;
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    kept.push(file);
    Ok(name)
}

/// Mounts a detached tree on `target`.
pub(crate) fn attach(tree: &OwnedFd, target: &Path) -> Result<(), MountError> {
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(kernel(String::from("attach the mount"), None))
}

/// Sets the flags of a bind mount, which is possible only after it is made.
fn restrict(target: &Path, attributes: MountAttrFlags) -> Result<(), MountError> {
    let mut flags = MountFlags::BIND;
    for (attribute, flag) in [
        (MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        (MountAttrFlags::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
        (MountAttrFlags::MOUNT_ATTR_STRICTATIME, MountFlags::STRICTATIME),
        (MountAttrFlags::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
    ] {
        if attributes.contains(attribute) {
            flags |= flag;
        }
    }
    mount_remount(target, flags, "").map_err(kernel(String::from("restrict the bind mount"), None))
}

/// Makes `target` and its parents. Returns the topmost path that did not exist.
fn make(target: &Path, directory: bool) -> std::io::Result<Option<PathBuf>> {
    let missing = target.ancestors().take_while(|path| path.symlink_metadata().is_err()).last();
    let missing = missing.map(Path::to_owned);
    if directory {
        std::fs::create_dir_all(target)?;
    } else if !target.exists() {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        File::create_new(target)?;
    }
    Ok(missing)
}

fn kernel(step: String, context: Option<BorrowedFd<'_>>) -> impl FnOnce(Errno) -> MountError {
    move |errno| MountError::Kernel { step, errno, said: context.map(messages).unwrap_or_default() }
}

/// The kernel's messages in the file system context: lines like `e overlay: no lower`.
fn messages(context: BorrowedFd<'_>) -> String {
    let mut said = String::new();
    let mut line = [0; 512];
    // Each read returns one message, and ENODATA after the last; the kernel keeps at most eight.
    while let Ok(length) = rustix::io::read(context, &mut line) {
        let text = String::from_utf8_lossy(&line[..length]);
        said.push_str("; ");
        said.push_str(text.trim_end().trim_start_matches(['e', 'w', 'i']).trim_start());
        if length == 0 || said.len() > 2048 {
            break;
        }
    }
    said
}
