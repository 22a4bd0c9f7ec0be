//! What a helper does to the mounts and device nodes of a container that is there.
//!
//! Everything is opened first, in a mount namespace of the helper's own: each volume's file system is mounted
//! there, and what is wanted of it is cloned, mounted nowhere yet. Then the helper enters the container's mount
//! namespace, whose root is the container's: no path leads out of it, whatever the links ([`super::place`]). What is
//! unmounted can be put back, because a clone of it is at hand.

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

use super::place::Place;
use crate::device::DeviceKind;
use crate::device::rule::Identity;
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
    /// Bits of mount attributes (`MOUNT_ATTR_*`, mount_setattr(2)).
    pub attributes: u32,
}

/// A node of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// Block or character.
    pub kind: DeviceKind,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
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
    let root = enter(descriptors)?;
    let (mut nodes, mut mounts) = (Vec::new(), Vec::new());
    let mut all = || -> Result<(), Unfit> {
        for node in &changes.nodes {
            nodes.push(node.make(&root)?);
        }
        for (volume, tree) in changes.volumes.iter().zip(&trees) {
            mounts.push(put(&root, volume, tree)?);
        }
        Ok(())
    };
    let result = all();
    if result.is_err() {
        for place in mounts.into_iter().rev() {
            // What somebody has come to use within this moment is detached from there all the same.
            let _ = place.unmount(UnmountFlags::DETACH);
        }
        nodes.into_iter().rev().for_each(Place::unmake);
    }
    Ok(result?)
}

impl DeviceNode {
    /// What it names, under whatever path.
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

    fn unfit(&self) -> impl Fn(Errno) -> Unfit {
        |errno| Unfit(format!("device {:?}: {errno}", self.path))
    }

    fn make(&self, root: &OwnedFd) -> Result<Place, Unfit> {
        let mut place = Place::find(root.as_fd(), &self.path, true).map_err(self.unfit())?;
        let made = place.make_node(self.file_type(), Mode::from_raw_mode(self.mode), self.number());
        match made.and_then(|()| place.give_to(self.uid, self.gid)) {
            Ok(()) => Ok(place),
            Err(errno) => {
                place.unmake();
                Err(self.unfit()(errno))
            }
        }
    }

    /// Whether it was there and named that device.
    fn remove(&self, root: &OwnedFd) -> Result<bool, Unfit> {
        let Ok(place) = Place::find(root.as_fd(), &self.path, false) else { return Ok(false) };
        let is_it = place.stat().is_ok_and(|there| {
            FileType::from_raw_mode(there.st_mode) == self.file_type() && there.st_rdev == self.number()
        });
        if is_it {
            place.remove().map_err(self.unfit())?;
        }
        Ok(is_it)
    }
}

impl Volume {
    fn unfit(&self) -> impl Fn(Errno) -> Unfit {
        |errno| {
            let reason = if errno == Errno::BUSY { "it is in use".into() } else { errno.to_string() };
            Unfit(format!("volume at {:?}: {reason}", self.target))
        }
    }
}

fn put(root: &OwnedFd, volume: &Volume, tree: &Tree) -> Result<Place, Unfit> {
    let mut place = Place::find(root.as_fd(), &volume.target, true).map_err(volume.unfit())?;
    match place.make(tree.is_directory).and_then(|()| place.mount(&tree.root)) {
        Ok(()) => Ok(place),
        Err(errno) => {
            place.unmake();
            Err(volume.unfit()(errno))
        }
    }
}

/// Unmounts each volume and removes each node, or none. What is not there any more is as good as gone.
pub(super) fn unplug(changes: &Changes, descriptors: &[OwnedFd]) -> anyhow::Result<()> {
    let trees = open(&changes.volumes)?;
    let root = enter(descriptors)?;
    let (mut volumes, mut nodes) = (Vec::new(), Vec::new());
    let mut all = || -> Result<(), Unfit> {
        for (volume, tree) in changes.volumes.iter().zip(&trees) {
            if take_out(&root, volume, tree)? {
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
    if let Err(unfit) = &result {
        // Each of them is tried: the container may have made one place unfit meanwhile, but not the others.
        let nodes = nodes.iter().map(|node| node.make(&root));
        let volumes = volumes.iter().rev().map(|(volume, tree)| put(&root, volume, tree));
        let back: Vec<_> = nodes.chain(volumes).filter_map(Result::err).collect();
        if let Some(lost) = back.first() {
            anyhow::bail!("{unfit}; and what was taken out cannot be put back: {lost}");
        }
    }
    Ok(result?)
}

/// Whether it was mounted there.
fn take_out(root: &OwnedFd, volume: &Volume, tree: &Tree) -> Result<bool, Unfit> {
    let Ok(place) = Place::find(root.as_fd(), &volume.target, false) else { return Ok(false) };
    if !place.stat().is_ok_and(|there| there.st_dev == tree.device) {
        return Ok(false);
    }
    place.unmount(UnmountFlags::empty()).map_err(volume.unfit())?;
    Ok(true)
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
    let there = rustix::fs::fstat(&root).context("look at its entry")?;
    let is_directory = FileType::from_raw_mode(there.st_mode).is_dir();
    Ok(Tree { root, is_directory, device: there.st_dev })
}

/// The root of the container, whose mount namespace this process is in from here on.
fn enter(descriptors: &[OwnedFd]) -> anyhow::Result<OwnedFd> {
    ensure!(descriptors.len() == 1, "the request comes with the container's init");
    move_into_thread_name_spaces(descriptors[0].as_fd(), ThreadNameSpaceType::MOUNT)
        .context("enter the container's mount namespace")?;
    // Nodes are made with the mode they are to have.
    rustix::process::umask(Mode::empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/", flags, Mode::empty()).context("open the container's root")
}
