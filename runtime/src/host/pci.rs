//! PCI functions of the host: their facts in sysfs, and binding them to VFIO or to the host's drivers again.
//!
//! Linux `Documentation/ABI/testing/sysfs-bus-pci`, `Documentation/driver-api/vfio.rst`. Every function takes
//! the mount point of sysfs, for tests.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::plan::PciAddress;
use crate::plan::PciFunctionFacts;
use crate::plan::VFIO_DRIVER;
use crate::plan::VfioGroupFacts;

/// The mount point of sysfs.
pub const SYS: &str = "/sys";
/// The device of iommufd, to which functions that are opened by their own files are bound.
pub const IOMMUFD: &str = "/dev/iommu";

/// Why a function could not be bound to another driver; it has the driver it had, unless the kernel says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The host has no function at this address.
    #[error("no PCI function {0} on this host")]
    Absent(PciAddress),
    /// A bridge, which the functions behind it need.
    #[error("PCI function {0} is a bridge, which stays with the host")]
    Bridge(PciAddress),
    /// Without an IOMMU nothing confines the DMA of a guest's device.
    #[error("PCI function {0} has no IOMMU group; turn the IOMMU on (in the firmware, and intel_iommu=on)")]
    NoGroup(PciAddress),
    /// The host uses a disk of this function.
    #[error("PCI function {address}: the host uses its disk {disk}; unmount it first")]
    DiskInUse {
        /// The function.
        address: PciAddress,
        /// The disk's node.
        disk: PathBuf,
    },
    /// A pod or another program has the function's group open.
    #[error(
        "PCI function {address}: IOMMU group {group} is in use by a pod or another program; stop it first"
    )]
    ContainerMounts {
        /// The function.
        address: PciAddress,
        /// Its group.
        group: u32,
    },
    /// The function is not bound to VFIO.
    #[error("PCI function {0} is not on vfio-pci")]
    NotOnVfio(PciAddress),
    /// The kernel refused a step.
    #[error("PCI function {address}: cannot {step}")]
    Kernel {
        /// The function.
        address: PciAddress,
        /// The step, as a verb.
        step: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// Every function of the host, sorted by address.
pub fn functions(sys: &Path) -> io::Result<Vec<PciFunctionFacts>> {
    let mut found: Vec<_> = fs::read_dir(sys.join("bus/pci/devices"))?
        .flatten()
        .filter_map(|entry| function(sys, entry.file_name().to_str()?.parse().ok()?))
        .collect();
    found.sort_by_key(|function| function.address);
    Ok(found)
}

/// The facts of one function; none if the host has no function at this address.
pub fn function(sys: &Path, address: PciAddress) -> Option<PciFunctionFacts> {
    let directory = directory(sys, address);
    let hex = |name: &str| {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    let target = |name: &str| {
        let target = fs::read_link(directory.join(name)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    };
    Some(PciFunctionFacts {
        address,
        vendor: u16::try_from(hex("vendor")?).ok()?,
        device: u16::try_from(hex("device")?).ok()?,
        class: hex("class")?,
        driver: target("driver"),
        group: target("iommu_group").and_then(|number| number.parse().ok()),
        // Empty if the function has no reset; kernels before 5.15 have the file `reset` only.
        resets: match fs::read_to_string(directory.join("reset_method")) {
            Ok(methods) => !methods.trim().is_empty(),
            Err(_) => directory.join("reset").exists(),
        },
        cdev: cdev(&directory).filter(|node| node.exists() && Path::new(IOMMUFD).exists()),
    })
}

/// The function's own device file, if the kernel makes device files for functions.
fn cdev(directory: &Path) -> Option<PathBuf> {
    let name = fs::read_dir(directory.join("vfio-dev")).ok()?.flatten().next()?.file_name();
    Some(Path::new("/dev/vfio/devices").join(name))
}

/// A group with its functions, sorted by address.
pub fn group(sys: &Path, number: u32) -> VfioGroupFacts {
    let members = fs::read_dir(sys.join(format!("kernel/iommu_groups/{number}/devices")));
    let mut functions: Vec<_> = members
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| function(sys, entry.file_name().to_str()?.parse().ok()?))
        .collect();
    functions.sort_by_key(|function| function.address);
    VfioGroupFacts { number, functions }
}

/// The group whose node has this device number; none if it is not the node of a VFIO group.
pub fn group_of_node(sys: &Path, (major, minor): (i64, i64)) -> Option<VfioGroupFacts> {
    let uevent = fs::read_to_string(sys.join(format!("dev/char/{major}:{minor}/uevent"))).ok()?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=vfio/"))?;
    Some(group(sys, name.parse().ok()?))
}

/// Binds a function to vfio-pci. The host must not be using it. If another driver takes it after all, that is an
/// error, and the function goes back to a driver of the host.
pub fn bind(sys: &Path, address: PciAddress) -> Result<PciFunctionFacts, BindError> {
    let facts = function(sys, address).ok_or(BindError::Absent(address))?;
    if facts.is_bridge() {
        return Err(BindError::Bridge(address));
    }
    if facts.group.is_none() {
        return Err(BindError::NoGroup(address));
    }
    if facts.is_vfio() {
        return Ok(facts);
    }
    if let Some(disk) = disks(&directory(sys, address)).into_iter().find(|disk| is_used(disk)) {
        return Err(BindError::DiskInUse { address, disk });
    }
    if !sys.join("bus/pci/drivers").join(VFIO_DRIVER).exists() {
        load_vfio().map_err(|source| BindError::Kernel { address, step: "load vfio-pci", source })?;
    }
    match rebind(sys, address, VFIO_DRIVER) {
        Ok(facts) if facts.is_vfio() => Ok(facts),
        other => {
            // The driver that had the function may have it again.
            let back = rebind(sys, address, "");
            if let Err(error) = &back {
                tracing::warn!(error = %crate::failure::chain(error), "{address} has no driver of the host again");
            }
            let source = io::Error::other("vfio-pci does not take it; the kernel's log says why");
            Err(other.err().unwrap_or(BindError::Kernel { address, step: "bind", source }))
        }
    }
}

/// Binds a function to a driver of the host again, if the host has one for it.
pub fn unbind(sys: &Path, address: PciAddress) -> Result<PciFunctionFacts, BindError> {
    let facts = function(sys, address).ok_or(BindError::Absent(address))?;
    if !facts.is_vfio() {
        return Err(BindError::NotOnVfio(address));
    }
    // Unbinding would wait, without a message, until the group is closed.
    if let Some(group) = facts.group
        && let Err(error) = fs::File::open(format!("/dev/vfio/{group}"))
        && error.kind() == io::ErrorKind::ResourceBusy
    {
        return Err(BindError::ContainerMounts { address, group });
    }
    rebind(sys, address, "")
}

/// Unbinds a function and has the kernel probe drivers for it: the one named, or every driver if the name is empty.
fn rebind(sys: &Path, address: PciAddress, driver: &str) -> Result<PciFunctionFacts, BindError> {
    let directory = directory(sys, address);
    let write = |path: PathBuf, text: &str, step| {
        fs::write(path, text).map_err(|source| BindError::Kernel { address, step, source })
    };
    let name = address.to_string();
    // A line break clears it.
    let wanted = if driver.is_empty() { "\n" } else { driver };
    write(directory.join("driver_override"), wanted, "set its driver_override")?;
    if directory.join("driver").exists() {
        write(directory.join("driver/unbind"), &name, "unbind it from its driver")?;
    }
    write(sys.join("bus/pci/drivers_probe"), &name, "probe drivers for it")?;
    function(sys, address).ok_or(BindError::Absent(address))
}

fn directory(sys: &Path, address: PciAddress) -> PathBuf {
    sys.join("bus/pci/devices").join(address.to_string())
}

/// The nodes of all disks and partitions of a function.
fn disks(directory: &Path) -> Vec<PathBuf> {
    const DEEPEST: usize = 12;
    let mut found = Vec::new();
    // The function's entry is a link itself; links below it lead to other devices.
    let mut level: Vec<PathBuf> = fs::canonicalize(directory).into_iter().collect();
    for _ in 0..DEEPEST {
        let mut next = Vec::new();
        for entry in level.iter().flat_map(fs::read_dir).flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                let subsystem = fs::read_link(path.join("subsystem")).unwrap_or_default();
                if subsystem.ends_with("block") && path.join("dev").exists() {
                    found.push(Path::new("/dev").join(entry.file_name()));
                }
                next.push(path);
            }
        }
        level = next;
    }
    found
}

/// Whether the host has a disk open exclusively: mounted, as swap, or as part of a volume.
fn is_used(disk: &Path) -> bool {
    use rustix::fs::Mode;
    use rustix::fs::OFlags;
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    matches!(rustix::fs::open(disk, flags, Mode::empty()), Err(rustix::io::Errno::BUSY))
}

fn load_vfio() -> io::Result<()> {
    let done = std::process::Command::new("modprobe").arg(VFIO_DRIVER).output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
}

/// Vendor and device names, if the host has the list of ids (pciutils' `pci.ids`).
pub fn names(functions: &[PciFunctionFacts]) -> Vec<Option<String>> {
    let list = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];
    let list = list.iter().find_map(|path| fs::read(path).ok()).unwrap_or_default();
    let list = String::from_utf8_lossy(&list);
    functions.iter().map(|function| name(&list, function.vendor, function.device)).collect()
}

/// `1b36  Red Hat, Inc.`, and below it, after a tab, `0010  QEMU NVM Express Controller`.
fn name(list: &str, vendor: u16, device: u16) -> Option<String> {
    let after = |line: &str, number: u16| {
        let name = line.strip_prefix(&format!("{number:04x}"))?.strip_prefix("  ")?;
        Some(name.to_owned())
    };
    let mut lines = list.lines().skip_while(|line| after(line, vendor).is_none());
    let vendor = after(lines.next()?, vendor)?;
    let device = lines
        .take_while(|line| line.starts_with(['\t', '#']))
        .find_map(|line| after(line.strip_prefix('\t')?, device));
    Some(match device {
        Some(device) => format!("{vendor} {device}"),
        None => vendor,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn host() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let devices = sys.path().join("bus/pci/devices");
        let members = sys.path().join("kernel/iommu_groups/7/devices");
        fs::create_dir_all(&members).unwrap();
        for (name, class, driver, reset) in [
            ("0000:00:1f.2", "0x010601", Some("ahci"), ""),
            ("0000:00:1f.0", "0x060100", None, ""),
            ("0000:00:05.0", "0x010802", Some(VFIO_DRIVER), "flr bus"),
        ] {
            let directory = devices.join(name);
            fs::create_dir_all(&directory).unwrap();
            for (file, text) in
                [("vendor", "0x8086"), ("device", "0x2922"), ("class", class), ("reset_method", reset)]
            {
                fs::write(directory.join(file), format!("{text}\n")).unwrap();
            }
            if let Some(driver) = driver {
                symlink(format!("../../drivers/{driver}"), directory.join("driver")).unwrap();
            }
            symlink("../../../kernel/iommu_groups/7", directory.join("iommu_group")).unwrap();
            fs::create_dir(members.join(name)).unwrap();
        }
        sys
    }

    #[test]
    fn functions_are_read_and_sorted() {
        let sys = host();
        let found = functions(sys.path()).unwrap();
        let addresses: Vec<_> = found.iter().map(|function| function.address.to_string()).collect();
        assert_eq!(addresses, ["0000:00:05.0", "0000:00:1f.0", "0000:00:1f.2"]);
        assert!(found[0].is_vfio() && found[0].resets && found[0].group == Some(7));
        assert!(found[1].is_bridge() && found[1].driver.is_none() && !found[1].resets);
        assert_eq!((found[2].vendor, found[2].device, found[2].class), (0x8086, 0x2922, 0x01_06_01));
    }

    #[test]
    fn a_functions_own_file_is_known_by_its_entry() {
        let sys = host();
        let directory = directory(sys.path(), "00:05.0".parse().unwrap());
        assert_eq!(cdev(&directory), None);
        fs::create_dir_all(directory.join("vfio-dev/vfio3")).unwrap();
        assert_eq!(cdev(&directory).unwrap(), Path::new("/dev/vfio/devices/vfio3"));
    }

    #[test]
    fn a_group_is_found_by_its_nodes_number() {
        let sys = host();
        let node = sys.path().join("dev/char/243:1");
        fs::create_dir_all(&node).unwrap();
        fs::write(node.join("uevent"), "MAJOR=243\nMINOR=1\nDEVNAME=vfio/7\n").unwrap();
        let group = group_of_node(sys.path(), (243, 1)).unwrap();
        assert_eq!((group.number, group.functions.len()), (7, 3));
        fs::write(node.join("uevent"), "DEVNAME=vfio/vfio\n").unwrap();
        assert_eq!(group_of_node(sys.path(), (243, 1)), None);
        assert_eq!(group_of_node(sys.path(), (1, 3)), None);
    }

    #[test]
    fn what_cannot_be_moved_is_refused_before_anything_is_done() {
        let sys = host();
        let refused = |address: &str| bind(sys.path(), address.parse().unwrap()).unwrap_err().to_string();
        assert!(refused("00:09.0").contains("no PCI function 0000:00:09.0"));
        assert!(refused("00:1f.0").contains("bridge"));
        let back = unbind(sys.path(), "00:1f.2".parse().unwrap()).unwrap_err();
        assert!(matches!(back, BindError::NotOnVfio(_)), "{back}");
        fs::remove_file(sys.path().join("bus/pci/devices/0000:00:1f.2/iommu_group")).unwrap();
        assert!(refused("00:1f.2").contains("IOMMU"));
    }

    #[test]
    fn names_come_from_the_list_of_ids() {
        let list = "# x\n1b35  Other\n\t0010  Wrong\n1b36  Red Hat, Inc.\n\t0001  Bridge\n\t0010  NVMe\n\
                    \t\t1af4 1100  Sub\n1b37  Next\n\t0011  Not mine\n";
        assert_eq!(name(list, 0x1b36, 0x10).as_deref(), Some("Red Hat, Inc. NVMe"));
        assert_eq!(name(list, 0x1b36, 0x11).as_deref(), Some("Red Hat, Inc."));
        assert_eq!(name(list, 0x9999, 0x11), None);
    }
}
