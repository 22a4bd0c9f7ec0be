//! Changing the mounts and device nodes of an existing container, in a helper.
//!
//! First each volume's file system is mounted in a mount namespace of the helper's own, and a detached clone of the
//! volume's entry is opened. Then the helper enters the container's mount namespace, whose root is the container's: no
//! path leads out of it, whatever the links ([`super::path`]). An unmounted volume can be mounted again from its clone.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Dev, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount,
};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use super::path::ContainerPath;
use crate::device::DeviceKind;
use crate::device::rule::Identity;
use crate::storage::mount;

/// The mount point of a volume's file system while it is opened, in the helper's own mount namespace.
const OPENED: &str = "/run/kiai/volume";

/// A volume: one entry of the root directory of its own virtio-fs device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The device's tag.
    pub tag: String,
    /// Name of the directory or file in the root of its file system.
    pub entry: String,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Bits of mount attributes (`MOUNT_ATTR_*`, mount_setattr(2)).
    pub attributes: u32,
}

/// A device node of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// Block or character.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits of the node.
    pub mode: u32,
    /// The node's owner.
    pub uid: u32,
    /// The node's group.
    pub gid: u32,
}

/// The volumes and nodes of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Volumes to mount or unmount.
    pub volumes: Vec<Volume>,
    /// Device nodes to make or remove.
    pub nodes: Vec<DeviceNode>,
}

/// The container's state does not allow the request; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct FailedPrecondition(String);

/// Makes every node and mounts every volume, or none.
pub(super) fn plug(changes: &Changes, descriptors: &[OwnedFd]) -> anyhow::Result<()> {
    let trees = open(&changes.volumes)?;
    let root = enter(descriptors)?;
    let (mut nodes, mut mounts) = (Vec::new(), Vec::new());
    let mut all = || -> Result<(), FailedPrecondition> {
        for node in &changes.nodes {
            nodes.push(node.make(&root)?);
        }
        for (volume, tree) in changes.volumes.iter().zip(&trees) {
            mounts.push(mount_volume(&root, volume, tree)?);
        }
        Ok(())
    };
    let result = all();
    if result.is_err() {
        for mount in mounts.into_iter().rev() {
            // A volume that a process uses already is detached all the same.
            let _ = mount.unmount(UnmountFlags::DETACH);
        }
        nodes.into_iter().rev().for_each(ContainerPath::unmake);
    }
    Ok(result?)
}

impl DeviceNode {
    /// The identity of the node's device.
    pub fn identity(&self) -> Identity {
        Identity { kind: self.kind, major: self.major, minor: self.minor }
    }

    fn file_type(&self) -> FileType {
        match self.kind {
            DeviceKind::Block => FileType::BlockDevice,
            DeviceKind::Character => FileType::CharacterDevice,
        }
    }

    fn number(&self) -> Dev {
        rustix::fs::makedev(self.major, self.minor)
    }

    fn failed(&self) -> impl Fn(Errno) -> FailedPrecondition {
        |errno| FailedPrecondition(format!("device {:?}: {errno}", self.path))
    }

    fn make(&self, root: &OwnedFd) -> Result<ContainerPath, FailedPrecondition> {
        let mut place = ContainerPath::resolve(root.as_fd(), &self.path, true).map_err(self.failed())?;
        let made = place.make_node(self.file_type(), Mode::from_raw_mode(self.mode), self.number());
        match made.and_then(|()| place.chown(self.uid, self.gid)) {
            Ok(()) => Ok(place),
            Err(errno) => {
                place.unmake();
                Err(self.failed()(errno))
            }
        }
    }

    /// Removes the node; returns whether it existed and was this device's.
    fn remove(&self, root: &OwnedFd) -> Result<bool, FailedPrecondition> {
        let Ok(place) = ContainerPath::resolve(root.as_fd(), &self.path, false) else { return Ok(false) };
        let is_it = place.stat().is_ok_and(|there| {
            FileType::from_raw_mode(there.st_mode) == self.file_type() && there.st_rdev == self.number()
        });
        if is_it {
            place.remove().map_err(self.failed())?;
        }
        Ok(is_it)
    }
}

impl Volume {
    fn failed(&self) -> impl Fn(Errno) -> FailedPrecondition {
        |errno| {
            let reason = if errno == Errno::BUSY {
                "in use; close its files in the container first".into()
            } else {
                errno.to_string()
            };
            FailedPrecondition(format!("volume at {:?}: {reason}", self.target))
        }
    }
}

fn mount_volume(root: &OwnedFd, volume: &Volume, tree: &Tree) -> Result<ContainerPath, FailedPrecondition> {
    let mut place = ContainerPath::resolve(root.as_fd(), &volume.target, true).map_err(volume.failed())?;
    match place.make(tree.is_directory).and_then(|()| place.mount(&tree.root)) {
        Ok(()) => Ok(place),
        Err(errno) => {
            place.unmake();
            Err(volume.failed()(errno))
        }
    }
}

/// Unmounts every volume and removes every node, or none. A volume that is already unmounted and a node that is already
/// removed are no error.
pub(super) fn unplug(changes: &Changes, descriptors: &[OwnedFd]) -> anyhow::Result<()> {
    let trees = open(&changes.volumes)?;
    let root = enter(descriptors)?;
    let (mut volumes, mut nodes) = (Vec::new(), Vec::new());
    let mut all = || -> Result<(), FailedPrecondition> {
        for (volume, tree) in changes.volumes.iter().zip(&trees) {
            if unmount_volume(&root, volume, tree)? {
                volumes.push((volume, tree));
            }
        }
        for node in &changes.nodes {
            if node.remove(&root)? {
                nodes.push(node);
            }
        }
        Ok(())
    };
    let result = all();
    if let Err(failed) = &result {
        // Each is tried, because the container may have changed one path meanwhile, but not the others.
        let nodes = nodes.iter().map(|node| node.make(&root));
        let volumes = volumes.iter().rev().map(|(volume, tree)| mount_volume(&root, volume, tree));
        let back: Vec<_> = nodes.chain(volumes).filter_map(Result::err).collect();
        if let Some(lost) = back.first() {
            anyhow::bail!("{failed}; and a volume or node that was removed cannot be restored: {lost}");
        }
    }
    Ok(result?)
}

/// Unmounts a volume; returns whether it was mounted.
fn unmount_volume(root: &OwnedFd, volume: &Volume, tree: &Tree) -> Result<bool, FailedPrecondition> {
    let Ok(place) = ContainerPath::resolve(root.as_fd(), &volume.target, false) else { return Ok(false) };
    if !place.stat().is_ok_and(|there| there.st_dev == tree.device) {
        return Ok(false);
    }
    place.unmount(UnmountFlags::empty()).map_err(volume.failed())?;
    Ok(true)
}

/// A detached clone of a volume's entry.
struct Tree {
    root: OwnedFd,
    is_directory: bool,
    /// The device number of the volume's file system, which identifies it.
    device: u64,
}

fn open(volumes: &[Volume]) -> anyhow::Result<Vec<Tree>> {
    if volumes.is_empty() {
        return Ok(Vec::new());
    }
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("keep mounts from spreading")?;
    std::fs::create_dir_all(OPENED).with_context(|| format!("make {OPENED}"))?;
    volumes
        .iter()
        .map(|volume| open_one(volume).with_context(|| format!("volume {:?}", volume.tag)))
        .collect()
}

fn open_one(volume: &Volume) -> anyhow::Result<Tree> {
    let attributes = MountAttrFlags::from_bits_retain(volume.attributes);
    let source = [(String::from("source"), Some(volume.tag.clone()))];
    let file_system = mount::new_file_system("virtiofs", &source, attributes)?;
    mount::attach(&file_system, Path::new(OPENED))?;
    drop(file_system);
    let entry = Path::new(OPENED).join(&volume.entry);
    let how = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let root = open_tree(CWD, &entry, how).context("open its entry")?;
    unmount(OPENED, UnmountFlags::DETACH).context("unmount its file system")?;
    let there = rustix::fs::fstat(&root).context("stat its entry")?;
    let is_directory = FileType::from_raw_mode(there.st_mode).is_dir();
    Ok(Tree { root, is_directory, device: there.st_dev })
}

/// Enters the container's mount namespace, for the rest of the process's life; returns the container's root.
fn enter(descriptors: &[OwnedFd]) -> anyhow::Result<OwnedFd> {
    ensure!(descriptors.len() == 1, "the request comes with the container's init");
    move_into_thread_name_spaces(descriptors[0].as_fd(), ThreadNameSpaceType::MOUNT)
        .context("enter the container's mount namespace")?;
    // So that nodes get exactly the mode they are made with.
    rustix::process::umask(Mode::empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/", flags, Mode::empty()).context("open the container's root")
}
