//! Finds a disk's node by its locator, a serial or a PCI path.
//!
//! Names are found in sysfs, never predicted: by `/sys/class/block/<name>/serial`, and for a PCI path below the
//! function's directory (virtio-blk: `virtioN/block/<name>`, NVMe: `nvme/nvmeN/nvmeNn1`). Only whole disks are found.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiai_protocol::agent::DeviceLocator;
use kiai_protocol::agent::device_locator::By;
use kiai_protocol::pci_path::{ParsePciPathError, PciPath};
use serde::{Deserialize, Serialize};

use super::rule::Identity;
use crate::uevent::Uevents;

/// The type of a device (OCI runtime-spec config-linux.md#devices).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DeviceKind {
    /// `b`.
    Block,
    /// `c`, and `u`, which means the same.
    Character,
}

impl DeviceKind {
    /// The type's letter in a spec.
    pub fn letter(self) -> char {
        match self {
            Self::Block => 'b',
            Self::Character => 'c',
        }
    }
}

/// A device node of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The node's path under `/dev`.
    pub path: PathBuf,
    /// Block or character.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Node {
    /// The identity of the node's device.
    pub fn identity(&self) -> Identity {
        Identity { kind: self.kind, major: self.major, minor: self.minor }
    }
}

/// Why a device was not found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// The locator has neither a PCI path nor a serial.
    #[error("the device locator is empty")]
    Empty,
    /// The serial's length is wrong; that of a virtio block device has 1 to 20 bytes (virtio 1.2 §5.2.6).
    #[error("the block serial {0:?} must have 1 to 20 bytes")]
    BadSerial(String),
    /// The PCI path is malformed.
    #[error(transparent)]
    BadPciPath(#[from] ParsePciPathError),
    /// The device did not appear in time.
    #[error("no device with {0} appeared within {1:?}")]
    Absent(String, Duration),
    /// The function is on the bus, but no driver has made a node for it.
    #[error(
        "no driver of the guest's kernel makes a node for PCI function {0}; assign it in user-space mode, which needs none"
    )]
    NoDriver(PciPath),
    /// The function cannot be bound to vfio-pci.
    #[error("bind PCI function {0} to vfio-pci")]
    Vfio(PciPath, #[source] std::io::Error),
    /// The socket for uevents failed.
    #[error("wait for {0}")]
    Wait(String, #[source] std::io::Error),
}

/// Waits until a disk has its node.
pub async fn wait_for(
    uevents: &Uevents,
    locator: &DeviceLocator,
    timeout: Duration,
) -> Result<Node, LocateError> {
    let target = Target::parse(locator)?;
    let found = uevents.wait_until(timeout, || target.look_up(Path::new("/sys"))).await;
    match found {
        Ok(Some(node)) => Ok(node),
        Ok(None) => Err(LocateError::Absent(target.to_string(), timeout)),
        Err(error) => Err(LocateError::Wait(target.to_string(), error)),
    }
}

/// Waits until a virtio-fs device with this tag is ready to be mounted.
pub async fn wait_for_virtio_fs(uevents: &Uevents, tag: &str, timeout: Duration) -> Result<(), LocateError> {
    let what = || format!("tag {tag:?}");
    match uevents.wait_until(timeout, || has_virtio_fs(Path::new("/sys"), tag).then_some(())).await {
        Ok(Some(())) => Ok(()),
        Ok(None) => Err(LocateError::Absent(what(), timeout)),
        Err(error) => Err(LocateError::Wait(what(), error)),
    }
}

/// Whether a virtio-fs device has this tag; Linux 6.9 and later list the tags in sysfs.
fn has_virtio_fs(sys: &Path, tag: &str) -> bool {
    fs::read_dir(sys.join("fs/virtiofs")).into_iter().flatten().flatten().any(|device| {
        fs::read_to_string(device.path().join("tag")).is_ok_and(|found| found.trim_end_matches('\n') == tag)
    })
}

/// A locator that was checked.
enum Target {
    Serial(String),
    Pci(PciPath),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial {serial:?}"),
            Self::Pci(path) => write!(f, "PCI path {path}"),
        }
    }
}

impl Target {
    fn parse(locator: &DeviceLocator) -> Result<Self, LocateError> {
        match &locator.by {
            Some(By::BlockSerial(serial)) if serial.is_empty() || serial.len() > 20 => {
                Err(LocateError::BadSerial(serial.chars().take(64).collect()))
            }
            Some(By::BlockSerial(serial)) => Ok(Self::Serial(serial.clone())),
            Some(By::PciPath(path)) => Ok(Self::Pci(path.parse()?)),
            _ => Err(LocateError::Empty),
        }
    }

    fn look_up(&self, sys: &Path) -> Option<Node> {
        let disk = match self {
            Self::Serial(serial) => disk_with_serial(sys, serial)?,
            Self::Pci(path) => disk_below(&pci_function(sys, path)?)?,
        };
        node_of_disk(&disk)
    }
}

/// The sysfs directory of a PCI function, if it is on the bus. `sys` is the mount point of sysfs.
///
/// Walks from the root bus through each bridge by slot and function; bus numbers are read, never assumed.
pub fn pci_function(sys: &Path, path: &PciPath) -> Option<PathBuf> {
    let mut directory = sys.join("devices/pci0000:00");
    let mut bus = String::from("0000:00");
    for (index, step) in path.steps().iter().enumerate() {
        if index > 0 {
            let buses = fs::read_dir(directory.join("pci_bus")).ok()?;
            bus = buses.flatten().next()?.file_name().into_string().ok()?;
        }
        directory = directory.join(format!("{bus}:{step}"));
        if !directory.exists() {
            return None;
        }
    }
    Some(directory)
}

fn disk_with_serial(sys: &Path, serial: &str) -> Option<PathBuf> {
    fs::read_dir(sys.join("block")).ok()?.flatten().map(|entry| entry.path()).find(|disk| {
        // virtio-blk has the file in the disk's directory, NVMe and SCSI in that of its device.
        ["serial", "device/serial"]
            .iter()
            .filter_map(|name| fs::read_to_string(disk.join(name)).ok())
            .any(|found| found.trim_end_matches(['\n', '\0', ' ']) == serial)
    })
}

/// The first whole disk below a PCI function, at most four directory levels down.
fn disk_below(function: &Path) -> Option<PathBuf> {
    let mut level = vec![function.to_owned()];
    for _ in 0..4 {
        let mut next = Vec::new();
        for directory in level {
            let mut children: Vec<_> = fs::read_dir(&directory).ok()?.flatten().collect();
            children.sort_by_key(fs::DirEntry::file_name);
            for child in children {
                // Links lead to other objects (driver, subsystem, iommu_group).
                if !child.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = child.path();
                if is_disk(&path) {
                    return Some(path);
                }
                next.push(path);
            }
        }
        level = next;
    }
    None
}

fn is_disk(directory: &Path) -> bool {
    let subsystem = fs::read_link(directory.join("subsystem")).unwrap_or_default();
    subsystem.ends_with("block") && !directory.join("partition").exists()
}

fn node_of_disk(disk: &Path) -> Option<Node> {
    let (major, minor) = parse_dev(&fs::read_to_string(disk.join("dev")).ok()?)?;
    let path = Path::new("/dev").join(disk.file_name()?);
    Some(Node { path, kind: DeviceKind::Block, major, minor })
}

pub(super) fn parse_dev(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree(files: &[(&str, &str)], links: &[(&str, &str)]) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let at = |path: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        for (path, text) in files {
            fs::write(at(path), text).unwrap();
        }
        for (path, target) in links {
            symlink(target, at(path)).unwrap();
        }
        sys
    }

    fn locate(sys: &tempfile::TempDir, by: By) -> Option<Node> {
        let locator = DeviceLocator { by: Some(by), ..Default::default() };
        Target::parse(&locator).unwrap().look_up(sys.path())
    }

    fn node(path: &str, major: u32, minor: u32) -> Option<Node> {
        Some(Node { path: path.into(), kind: DeviceKind::Block, major, minor })
    }

    #[test]
    fn a_block_device_is_found_by_its_whole_serial() {
        let sys = tree(
            &[
                ("block/vda/serial", "disk-1"),
                ("block/vda/dev", "254:0\n"),
                ("block/vdb/serial", "disk-10\n"),
                ("block/vdb/dev", "254:16\n"),
                ("block/nvme0n1/device/serial", "N1                  \n"),
                ("block/nvme0n1/dev", "259:0\n"),
            ],
            &[],
        );
        assert_eq!(locate(&sys, By::BlockSerial("disk-1".into())), node("/dev/vda", 254, 0));
        assert_eq!(locate(&sys, By::BlockSerial("disk-10".into())), node("/dev/vdb", 254, 16));
        assert_eq!(locate(&sys, By::BlockSerial("N1".into())), node("/dev/nvme0n1", 259, 0));
        assert_eq!(locate(&sys, By::BlockSerial("disk".into())), None);
    }

    #[test]
    fn a_pci_path_leads_through_bridges_to_the_disk_and_not_to_its_partition() {
        let sys = tree(
            &[
                ("devices/pci0000:00/0000:00:03.0/virtio1/block/vda/dev", "254:0\n"),
                ("devices/pci0000:00/0000:00:03.0/virtio1/block/vda/vda1/dev", "254:1\n"),
                ("devices/pci0000:00/0000:00:03.0/virtio1/block/vda/vda1/partition", "1\n"),
                ("devices/pci0000:00/0000:00:02.0/pci_bus/0000:05/x", ""),
                ("devices/pci0000:00/0000:00:02.0/0000:05:1f.7/nvme/nvme0/nvme0n1/dev", "259:0\n"),
                ("devices/pci0000:00/0000:00:04.0/virtio2/net/eth0/address", "02:00:00:00:00:01\n"),
            ],
            &[
                (
                    "devices/pci0000:00/0000:00:03.0/virtio1/block/vda/subsystem",
                    "../../../../../../class/block",
                ),
                (
                    "devices/pci0000:00/0000:00:03.0/virtio1/block/vda/vda1/subsystem",
                    "../../../../../../../class/block",
                ),
                (
                    "devices/pci0000:00/0000:00:02.0/0000:05:1f.7/nvme/nvme0/nvme0n1/subsystem",
                    "../../../../../../../class/block",
                ),
            ],
        );
        assert_eq!(locate(&sys, By::PciPath("03.0".into())), node("/dev/vda", 254, 0));
        assert_eq!(locate(&sys, By::PciPath("02.0/1f.7".into())), node("/dev/nvme0n1", 259, 0));
        assert_eq!(locate(&sys, By::PciPath("04.0".into())), None);
        assert_eq!(locate(&sys, By::PciPath("05.0".into())), None);
        assert_eq!(locate(&sys, By::PciPath("03.0/00.0".into())), None);
    }

    #[test]
    fn locators_that_cannot_be_are_refused() {
        let refuse = |by| Target::parse(&DeviceLocator { by, ..Default::default() }).err().unwrap();
        assert!(matches!(refuse(None), LocateError::Empty));
        assert!(matches!(refuse(Some(By::BlockSerial(String::new()))), LocateError::BadSerial(_)));
        assert!(matches!(refuse(Some(By::BlockSerial("x".repeat(21)))), LocateError::BadSerial(_)));
        assert!(matches!(refuse(Some(By::PciPath("../..".into()))), LocateError::BadPciPath(_)));
    }
}
