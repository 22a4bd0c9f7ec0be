//! The nodes of a PCI function that is passed through: those its driver makes, or the node of its VFIO group.
//!
//! Nodes are found in sysfs below the function, with the kernel's names (`DEVNAME`). A storage function has its nodes
//! when its first disk has been scanned for partitions: opening the disk waits for that (Linux `block/bdev.c`,
//! `open_mutex`). A network function may have none; any other function has its nodes when it has one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiai_protocol::pci_path::PciPath;

use super::locate::parse_dev;
use super::{DeviceKind, LocateError, Node, pci_function};
use crate::uevent::Uevents;

/// sysfs directory of the VFIO container's node, `/dev/vfio/vfio`, which VFIO's users open besides a group's.
const VFIO_CONTAINER: &str = "class/misc/vfio";

/// PCI base classes (PCI Code and ID Assignment 1.11 §1).
const STORAGE: u8 = 0x01;
const NETWORK: u8 = 0x02;

/// The number of directory levels below a function that are searched for nodes.
const DEEPEST: usize = 8;

/// A function's address in the guest: "0000:00:05.0".
pub fn address(path: &PciPath) -> Option<String> {
    Some(pci_function(Path::new("/sys"), path)?.file_name()?.to_str()?.to_owned())
}

/// Waits for the nodes that the guest's driver makes for a function.
pub async fn wait_for_nodes(
    uevents: &Uevents,
    path: &PciPath,
    timeout: Duration,
) -> Result<Vec<Node>, LocateError> {
    let sys = Path::new("/sys");
    let ready = uevents.wait_until(timeout, || pci_function(sys, path).filter(|function| is_ready(function)));
    let function = match ready.await.map_err(|error| LocateError::Wait(what(path), error))? {
        Some(function) => function,
        None if pci_function(sys, path).is_some() => return Err(LocateError::NoDriver(path.clone())),
        None => return Err(LocateError::Absent(what(path), timeout)),
    };
    let scan = move || {
        for disk in nodes(&function).iter().filter(|node| node.kind == DeviceKind::Block) {
            // Opening waits for the scan. A disk that cannot be read has no partitions.
            let _ = fs::File::open(&disk.path);
        }
        nodes(&function)
    };
    tokio::task::spawn_blocking(scan).await.map_err(|error| LocateError::Wait(what(path), error.into()))
}

/// Unbinds a function from its driver, binds it to vfio-pci and waits for its group's node.
///
/// The guest has no IOMMU (the host's confines the guest to its own memory), so the group is one in VFIO's no-IOMMU
/// mode (Linux `vfio.rst`), which has to be enabled in the kernel.
pub async fn bind_to_vfio(uevents: &Uevents, path: &PciPath, timeout: Duration) -> Result<Node, LocateError> {
    let sys = Path::new("/sys");
    let function = pci_function(sys, path).ok_or_else(|| LocateError::Absent(what(path), Duration::ZERO))?;
    let bind = {
        let function = function.clone();
        move || bind(Path::new("/sys"), &function)
    };
    let bound = tokio::task::spawn_blocking(bind).await.unwrap_or_else(|error| Err(error.into()));
    bound.map_err(|error| LocateError::Vfio(path.clone(), error))?;
    match uevents.wait_until(timeout, || group_node(sys, &function)).await {
        Ok(Some(node)) => Ok(node),
        Ok(None) => Err(LocateError::Absent(format!("VFIO group of PCI path {path}"), timeout)),
        Err(error) => Err(LocateError::Wait(what(path), error)),
    }
}

/// The node of the VFIO container, which VFIO's users open besides a group's.
pub fn vfio_container() -> Result<Node, LocateError> {
    let found = node(&Path::new("/sys").join(VFIO_CONTAINER), DeviceKind::Character);
    found.ok_or_else(|| LocateError::Absent("name /dev/vfio/vfio".into(), Duration::ZERO))
}

fn what(path: &PciPath) -> String {
    format!("PCI path {path}")
}

fn bind(sys: &Path, function: &Path) -> io::Result<()> {
    if !function.join("iommu_group").exists() {
        fs::write(sys.join("module/vfio/parameters/enable_unsafe_noiommu_mode"), "Y")?;
    }
    let address = function.file_name().unwrap_or_default().as_encoded_bytes();
    fs::write(function.join("driver_override"), "vfio-pci")?;
    if function.join("driver").exists() {
        fs::write(function.join("driver/unbind"), address)?;
    }
    fs::write(sys.join("bus/pci/drivers_probe"), address)?;
    match fs::read_link(function.join("driver")) {
        Ok(driver) if driver.ends_with("vfio-pci") => Ok(()),
        Ok(driver) => Err(io::Error::other(format!("driver {} has taken it", driver.display()))),
        Err(_) => Err(io::Error::other("vfio-pci does not bind to it")),
    }
}

/// The node of a function's VFIO group.
fn group_node(sys: &Path, function: &Path) -> Option<Node> {
    let group = fs::read_link(function.join("iommu_group")).ok()?;
    let number = group.file_name()?.to_str()?;
    [number.to_owned(), format!("noiommu-{number}")]
        .iter()
        .find_map(|name| node(&sys.join("class/vfio").join(name), DeviceKind::Character))
}

fn is_ready(function: &Path) -> bool {
    let found = nodes(function);
    match base_class(function) {
        Some(STORAGE) => found.iter().any(|node| node.kind == DeviceKind::Block),
        Some(NETWORK) => function.join("driver").exists(),
        _ => !found.is_empty(),
    }
}

fn base_class(function: &Path) -> Option<u8> {
    let text = fs::read_to_string(function.join("class")).ok()?;
    u8::from_str_radix(text.trim().strip_prefix("0x")?.get(..2)?, 16).ok()
}

/// Every node below a function, sorted by path.
fn nodes(function: &Path) -> Vec<Node> {
    let mut found = Vec::new();
    let mut level = vec![function.to_owned()];
    for _ in 0..DEEPEST {
        let mut next = Vec::new();
        for directory in level {
            for child in fs::read_dir(&directory).into_iter().flatten().flatten() {
                // Links lead to other objects (driver, subsystem, iommu_group).
                if !child.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = child.path();
                found.extend(node(&path, kind(&path)));
                next.push(path);
            }
        }
        level = next;
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn kind(device: &Path) -> DeviceKind {
    let subsystem = fs::read_link(device.join("subsystem")).unwrap_or_default();
    if subsystem.ends_with("block") { DeviceKind::Block } else { DeviceKind::Character }
}

/// The node of the device at a sysfs directory, if it has one.
pub(super) fn node(device: &Path, kind: DeviceKind) -> Option<Node> {
    let (major, minor) = parse_dev(&fs::read_to_string(device.join("dev")).ok()?)?;
    let uevent = fs::read_to_string(device.join("uevent")).ok()?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    let path = PathBuf::from("/dev").join(name);
    let stays = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    (stays && path.starts_with("/dev")).then_some(Node { path, kind, major, minor })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn device(sys: &Path, at: &str, dev: &str, name: &str, subsystem: &str) {
        let directory = sys.join(at);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("dev"), dev).unwrap();
        fs::write(directory.join("uevent"), format!("MAJOR=1\nDEVNAME={name}\n")).unwrap();
        symlink(format!("/sys/class/{subsystem}"), directory.join("subsystem")).unwrap();
    }

    fn names(function: &Path) -> Vec<String> {
        nodes(function).iter().map(|node| node.path.display().to_string()).collect()
    }

    #[test]
    fn a_disks_nodes_are_its_controller_itself_and_its_partitions() {
        let sys = tempfile::tempdir().unwrap();
        let function = sys.path().join("devices/pci0000:00/0000:00:05.0");
        fs::create_dir_all(&function).unwrap();
        fs::write(function.join("class"), "0x010802\n").unwrap();
        assert!(!is_ready(&function));
        let below = |name: &str| format!("devices/pci0000:00/0000:00:05.0/nvme/nvme0{name}");
        device(sys.path(), &below(""), "240:0\n", "nvme0", "nvme");
        assert!(!is_ready(&function), "the controller alone is no disk");
        device(sys.path(), &below("/nvme0n1"), "259:0\n", "nvme0n1", "block");
        device(sys.path(), &below("/nvme0n1/nvme0n1p1"), "259:1\n", "nvme0n1p1", "block");
        symlink(&function, function.join("loop")).unwrap();
        assert!(is_ready(&function));
        assert_eq!(names(&function), ["/dev/nvme0", "/dev/nvme0n1", "/dev/nvme0n1p1"]);
        let kinds: Vec<_> = nodes(&function).iter().map(|node| node.kind).collect();
        assert_eq!(kinds, [DeviceKind::Character, DeviceKind::Block, DeviceKind::Block]);
    }

    #[test]
    fn other_classes_have_what_their_driver_makes() {
        let sys = tempfile::tempdir().unwrap();
        let function = sys.path().join("0000:00:06.0");
        fs::create_dir_all(&function).unwrap();
        fs::write(function.join("class"), "0x030000\n").unwrap();
        assert!(!is_ready(&function));
        device(sys.path(), "0000:00:06.0/drm/card0", "226:0\n", "dri/card0", "drm");
        device(sys.path(), "0000:00:06.0/odd", "1:2\n", "../etc/passwd", "odd");
        assert!(is_ready(&function));
        assert_eq!(names(&function), ["/dev/dri/card0"]);
        fs::write(function.join("class"), "0x020000\n").unwrap();
        assert!(!is_ready(&function), "an interface comes with its driver");
        symlink(sys.path(), function.join("driver")).unwrap();
        assert!(is_ready(&function));
    }

    #[test]
    fn a_group_without_an_iommu_has_another_name() {
        let sys = tempfile::tempdir().unwrap();
        let function = sys.path().join("0000:00:06.0");
        fs::create_dir_all(&function).unwrap();
        assert_eq!(group_node(sys.path(), &function), None);
        symlink("../../kernel/iommu_groups/3", function.join("iommu_group")).unwrap();
        assert_eq!(group_node(sys.path(), &function), None);
        device(sys.path(), "class/vfio/noiommu-3", "243:0\n", "vfio/noiommu-3", "vfio");
        let found = group_node(sys.path(), &function).unwrap();
        assert_eq!((found.path.to_str().unwrap(), found.major), ("/dev/vfio/noiommu-3", 243));
    }
}
