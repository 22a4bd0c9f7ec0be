//! What a helper does to the mounts and device nodes of a container that is there.
//!
//! Everything is opened first, in a mount namespace of the helper's own: each volume's file system is mounted
//! there, and what is wanted of it is cloned, mounted nowhere yet. Then the helper enters the container's mount
//! namespace, whose root is the container's: no path leads out of it, whatever the links. What is unmounted can
//! be put back, because a clone of it is at hand.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount,
};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use crate::storage::mount;

/// Where a volume's file system is mounted while it is opened; seen by this helper alone.
const OPENED: &str = "/run/kiai/volume";

/// A volume of its own virtio-fs device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The device's tag.
    pub tag: String,
    /// Name of the directory or file in the root of its file system.
    pub entry: String,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Not to be written to.
    pub read_only: bool,
}

/// A node of a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
}

/// What comes or goes together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Device nodes.
    pub nodes: Vec<DeviceNode>,
}

/// The container is not as it would have to be; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unfit(String);

/// Makes each node and mounts each volume in the container, or none.
pub(super) fn plug(changes: &Changes, descriptors: &[OwnedFd]) -> anyhow::Result<()> {
    let trees = open(&changes.volumes)?;
    enter(descriptors)?;
    let mut made: Vec<&Path> = Vec::new();
    let mut done: Vec<(&Path, Option<PathBuf>)> = Vec::new();
    let nodes = changes.nodes.iter().try_for_each(|node| node.make().map(|()| made.push(&node.path)));
    let result =
        nodes.and_then(|()| {
            changes.volumes.iter().zip(&trees).try_for_each(|(volume, tree)| {
                put(volume, tree).map(|above| done.push((&volume.target, above)))
            })
        });
    if result.is_err() {
        for (target, above) in done.iter().rev() {
            // What somebody has come to use within this moment is detached from there all the same.
            let _ = mount::undo(target, above.as_deref());
        }
        for path in made {
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(result?)
}

impl DeviceNode {
    fn make(&self) -> Result<(), Unfit> {
        let unfit = |reason: &dyn std::fmt::Display| Unfit(format!("device {:?}: {reason}", self.path));
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| unfit(&error))?;
        }
        // Whatever the umask.
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
        let number = rustix::fs::makedev(self.major, self.minor);
        rustix::fs::mknodat(CWD, &self.path, FileType::BlockDevice, mode, number)
            .and_then(|()| rustix::fs::chmod(&self.path, mode))
            .map_err(|errno| unfit(&errno))
    }

    /// Whether it is there and names that device.
    fn is_there(&self) -> bool {
        rustix::fs::lstat(&self.path).is_ok_and(|there| {
            FileType::from_raw_mode(there.st_mode) == FileType::BlockDevice
                && there.st_rdev == rustix::fs::makedev(self.major, self.minor)
        })
    }
}

/// Returns the topmost path that was made for it.
fn put(volume: &Volume, tree: &Tree) -> Result<Option<PathBuf>, Unfit> {
    let unfit = |reason: &dyn std::fmt::Display| Unfit(format!("volume at {:?}: {reason}", volume.target));
    let made = mount::make(&volume.target, tree.is_directory).map_err(|error| unfit(&error))?;
    mount::attach(&tree.root, &volume.target).map_err(|error| {
        let _ = mount::undo(&volume.target, made.as_deref());
        unfit(&error)
    })?;
    Ok(made)
}

/// Unmounts each volume and removes each node, or none. What is not there any more is as good as gone.
pub(super) fn unplug(changes: &Changes, descriptors: &[OwnedFd]) -> anyhow::Result<()> {
    let trees = open(&changes.volumes)?;
    enter(descriptors)?;
    let mut gone: Vec<(PathBuf, &Tree)> = Vec::new();
    let volumes = changes.volumes.iter().zip(&trees).try_for_each(|(volume, tree)| {
        gone.extend(take_out(volume, tree)?.map(|target| (target, tree)));
        Ok(())
    });
    let mut removed: Vec<&DeviceNode> = Vec::new();
    let result = volumes.and_then(|()| {
        changes.nodes.iter().filter(|node| node.is_there()).try_for_each(|node| {
            std::fs::remove_file(&node.path)
                .map(|()| removed.push(node))
                .map_err(|error| Unfit(format!("device {:?}: {error}", node.path)))
        })
    });
    if result.is_err() {
        for node in removed {
            node.make()?;
        }
        for (target, tree) in gone.iter().rev() {
            mount::attach(&tree.root, target).with_context(|| format!("put back {target:?}"))?;
        }
    }
    Ok(result?)
}

/// Where it was mounted; none if it is there no more.
fn take_out(volume: &Volume, tree: &Tree) -> Result<Option<PathBuf>, Unfit> {
    let Ok(target) = std::fs::canonicalize(&volume.target) else { return Ok(None) };
    if !rustix::fs::stat(&target).is_ok_and(|there| there.st_dev == tree.device) {
        return Ok(None);
    }
    match unmount(&target, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(Some(target)),
        Err(errno) => {
            let reason = if errno == Errno::BUSY { "it is in use".into() } else { errno.to_string() };
            Err(Unfit(format!("volume at {:?}: {reason}", volume.target)))
        }
    }
}

/// What is to be mounted, mounted nowhere yet.
struct Tree {
    root: OwnedFd,
    is_directory: bool,
    /// Number of the file system, by which it is known from others.
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
    let attributes =
        if volume.read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    let source = [(String::from("source"), Some(volume.tag.clone()))];
    let file_system = mount::new_file_system("virtiofs", &source, attributes)?;
    mount::attach(&file_system, Path::new(OPENED))?;
    drop(file_system);
    let entry = Path::new(OPENED).join(&volume.entry);
    let how = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let root = open_tree(CWD, &entry, how).context("open its entry")?;
    unmount(OPENED, UnmountFlags::DETACH).context("let go of its file system")?;
    let there = rustix::fs::fstat(&root).context("look at its entry")?;
    let is_directory = FileType::from_raw_mode(there.st_mode).is_dir();
    Ok(Tree { root, is_directory, device: there.st_dev })
}

fn enter(descriptors: &[OwnedFd]) -> anyhow::Result<()> {
    ensure!(descriptors.len() == 1, "the request comes with the container's init");
    move_into_thread_name_spaces(descriptors[0].as_fd(), ThreadNameSpaceType::MOUNT)
        .context("enter the container's mount namespace")
}
