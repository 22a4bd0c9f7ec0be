//! Devices of the spec (config-linux.md#devices): which are the guest's own, which are lent, which cannot be had.

use std::path::Path;
use std::path::PathBuf;

use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::LinuxDeviceType;

use super::HostFacts;
use super::PassMode;
use super::PassedFunction;
use super::PciAddress;
use super::PlanError;
use super::pci;

/// Character devices every Linux kernel numbers alike and gives to whoever opens them: null, zero, full, random,
/// urandom, tty, console, ptmx, fuse, net/tun, vfio/vfio. The guest's own serve the spec's entries unchanged.
const GUEST_NATIVE: &[(i64, i64)] =
    &[(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 229), (10, 200), (10, 196)];

/// A block device of the host, lent to the guest as a virtio disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its node on the host.
    pub node: PathBuf,
    /// The spec entry it serves.
    pub container_path: PathBuf,
    /// Its identity on the host.
    pub major: i64,
    /// Its identity on the host.
    pub minor: i64,
    /// No rule of the spec allows writing.
    pub read_only: bool,
}

pub(super) fn is_guest_native(major: i64, minor: i64) -> bool {
    GUEST_NATIVE.contains(&(major, minor))
}

/// The disks to lend. Every other entry is the guest's own, or an error.
pub(super) fn plan_devices(
    devices: &[LinuxDevice],
    rules: &[LinuxDeviceCgroup],
    facts: &HostFacts,
) -> Result<Vec<Disk>, PlanError> {
    let mut disks = Vec::new();
    for device in devices {
        let (path, major, minor) = (device.path(), device.major(), device.minor());
        let refuse = |reason: String| Err(PlanError::Device { path: path.clone(), reason });
        match device.typ() {
            // A fifo has no kernel behind it.
            LinuxDeviceType::P => {}
            LinuxDeviceType::C | LinuxDeviceType::U if is_guest_native(major, minor) => {}
            // A VFIO group: `plan_functions`.
            LinuxDeviceType::C | LinuxDeviceType::U if facts.vfio.contains_key(&(major, minor)) => {}
            LinuxDeviceType::C | LinuxDeviceType::U => {
                return refuse(format!(
                    "character device {major}:{minor} of the host cannot be lent to a microVM"
                ));
            }
            LinuxDeviceType::B => match facts.block_devices.get(&(major, minor)) {
                Some(found) => disks.push(disk(path, (major, minor), &found.node, rules)),
                None => return refuse(format!("no block device {major}:{minor} on this host")),
            },
            LinuxDeviceType::A => return refuse("type \"a\" is no device".into()),
        }
    }
    Ok(disks)
}

/// The PCI functions to pass: those of every VFIO group among the entries. `chosen` is what annotations say.
pub(super) fn plan_functions(
    devices: &[LinuxDevice],
    chosen: &[(PciAddress, PassMode)],
    facts: &HostFacts,
) -> Result<Vec<PassedFunction>, PlanError> {
    let mut functions: Vec<PassedFunction> = Vec::new();
    for device in devices {
        let number = (device.major(), device.minor());
        if !matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U) {
            continue;
        }
        if let Some(group) = facts.vfio.get(&number) {
            if functions.iter().any(|function| function.group == group.number) {
                let reason = format!("another entry names IOMMU group {} already", group.number);
                return Err(PlanError::Device { path: device.path().clone(), reason });
            }
            functions.extend(pci::plan_group(device.path(), number, group, chosen)?);
        }
    }
    match chosen.iter().find(|(address, _)| functions.iter().all(|function| function.address != *address)) {
        Some((address, _)) => Err(PlanError::NoGroup(*address)),
        None => Ok(functions),
    }
}

fn disk(path: &Path, (major, minor): (i64, i64), node: &Path, rules: &[LinuxDeviceCgroup]) -> Disk {
    let mut own =
        rules.iter().filter(|rule| rule.major() == Some(major) && rule.minor() == Some(minor)).peekable();
    let ruled = own.peek().is_some();
    let writable =
        own.any(|rule| rule.allow() && rule.access().as_ref().is_none_or(|access| access.contains('w')));
    Disk { node: node.into(), container_path: path.into(), major, minor, read_only: ruled && !writable }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceBuilder;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    use super::*;
    use crate::plan::BlockDevice;

    fn device(path: &str, typ: LinuxDeviceType, major: i64, minor: i64) -> LinuxDevice {
        LinuxDeviceBuilder::default().path(path).typ(typ).major(major).minor(minor).build().unwrap()
    }

    fn facts() -> HostFacts {
        let node = BlockDevice { node: "/dev/loop0".into() };
        HostFacts { block_devices: [((7, 0), node)].into(), ..HostFacts::default() }
    }

    #[test]
    fn the_guests_own_pass_and_a_disk_is_lent() {
        let devices =
            [device("/dev/fuse", LinuxDeviceType::C, 10, 229), device("/dev/xvda", LinuxDeviceType::B, 7, 0)];
        let disks = plan_devices(&devices, &[], &facts()).unwrap();
        let expected = Disk {
            node: "/dev/loop0".into(),
            container_path: "/dev/xvda".into(),
            major: 7,
            minor: 0,
            read_only: false,
        };
        assert_eq!(disks, [expected]);
    }

    #[test]
    fn a_disk_is_read_only_when_its_rules_say_so() {
        let rule = |access: &str| {
            LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(LinuxDeviceType::B)
                .major(7)
                .minor(0)
                .access(access)
                .build()
                .unwrap()
        };
        let devices = [device("/dev/xvda", LinuxDeviceType::B, 7, 0)];
        assert!(plan_devices(&devices, &[rule("r")], &facts()).unwrap()[0].read_only);
        assert!(!plan_devices(&devices, &[rule("r"), rule("rwm")], &facts()).unwrap()[0].read_only);
    }

    #[test]
    fn other_devices_are_refused_by_path() {
        for bad in [
            device("/dev/kvm", LinuxDeviceType::C, 10, 232),
            device("/dev/sdz", LinuxDeviceType::B, 8, 400),
            device("/dev/all", LinuxDeviceType::A, 0, 0),
        ] {
            let error = plan_devices(std::slice::from_ref(&bad), &[], &facts()).unwrap_err();
            assert!(error.to_string().contains(bad.path().to_str().unwrap()), "{error}");
        }
    }
}
