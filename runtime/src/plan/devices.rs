//! Devices of the spec (config-linux.md#devices): which are the guest's own, which devices of the host are assigned
//! for, and which cannot be provided.

use std::path::Path;
use std::path::PathBuf;

use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::LinuxDeviceType;

use super::HostFacts;
use super::PassthroughFunction;
use super::PassthroughMode;
use super::PciAddress;
use super::PlanError;
use super::pci;

/// Standard character devices, which have the same number in every Linux kernel and keep no state between their
/// users: null, zero, full, random, urandom, tty, console, ptmx, fuse, net/tun, vfio/vfio. The guest's own devices
/// serve entries for them.
const GUEST_NATIVE: &[(i64, i64)] =
    &[(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 229), (10, 200), (10, 196)];

/// The major number of the terminals in /dev/pts.
const PSEUDO_TERMINALS: i64 = 136;

/// A block device of the host that is assigned to a container as a virtio disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The device's node on the host.
    pub node: PathBuf,
    /// Path of the spec's entry that the disk serves.
    pub container_path: PathBuf,
    /// Major number on the host.
    pub major: i64,
    /// Minor number on the host.
    pub minor: i64,
    /// The device rules of the spec do not allow writing.
    pub read_only: bool,
}

pub(super) fn is_guest_native(major: i64, minor: i64) -> bool {
    GUEST_NATIVE.contains(&(major, minor))
}

/// The disks to assign. Every other entry is served by the guest's own devices or by a PCI function, or is an error.
fn plan_disks(
    devices: &[LinuxDevice],
    rules: &[LinuxDeviceCgroup],
    facts: &HostFacts,
) -> Result<Vec<Disk>, PlanError> {
    let mut disks = Vec::new();
    for device in once_each(devices) {
        let (path, major, minor) = (device.path(), device.major(), device.minor());
        let refuse = |reason: String| Err(PlanError::Device { path: path.clone(), reason });
        match device.typ() {
            // A fifo is made in the guest; no device of the host serves it.
            LinuxDeviceType::P => {}
            LinuxDeviceType::C | LinuxDeviceType::U if is_guest_native(major, minor) => {}
            // `plan_functions` plans VFIO groups.
            LinuxDeviceType::C | LinuxDeviceType::U if facts.vfio.contains_key(&(major, minor)) => {}
            LinuxDeviceType::C | LinuxDeviceType::U => {
                return refuse(format!(
                    "character device {major}:{minor} of the host cannot be assigned to a microVM"
                ));
            }
            LinuxDeviceType::B => match facts.block_devices.get(&(major, minor)) {
                Some(found) => disks.push(disk(path, (major, minor), &found.node, rules)),
                None => return refuse(format!("this host has no block device {major}:{minor}")),
            },
            LinuxDeviceType::A => return refuse("type \"a\" is for rules only; write b, c, u or p".into()),
        }
    }
    check_rules(devices, rules)?;
    Ok(disks)
}

/// The disks and PCI functions to assign for a list of entries with its rules. `chosen` are functions that annotations
/// name, each with who drives it.
pub fn plan_devices(
    devices: &[LinuxDevice],
    rules: &[LinuxDeviceCgroup],
    chosen: &[(PciAddress, PassthroughMode)],
    facts: &HostFacts,
) -> Result<(Vec<Disk>, Vec<PassthroughFunction>), PlanError> {
    let disks = plan_disks(devices, rules, facts)?;
    Ok((disks, plan_functions(devices, chosen, facts)?))
}

/// The entries without repetitions: one device at one path, which other runtimes make once, too.
pub(super) fn once_each(devices: &[LinuxDevice]) -> impl Iterator<Item = &LinuxDevice> {
    let key = |device: &LinuxDevice| (device.path().clone(), device.typ(), device.major(), device.minor());
    let is_first = move |(index, device): &(usize, &LinuxDevice)| {
        devices[..*index].iter().all(|earlier| key(earlier) != key(device))
    };
    devices.iter().enumerate().filter(is_first).map(|(_, device)| device)
}

/// Refuses a rule that allows a device of the host by its number without an entry for it: no device is assigned for
/// such a rule, and in the guest another container's device may have the number.
fn check_rules(devices: &[LinuxDevice], rules: &[LinuxDeviceCgroup]) -> Result<(), PlanError> {
    let orphan = rules.iter().filter(|rule| rule.allow()).find(|rule| {
        let (Some(major @ 0..), Some(minor @ 0..)) = (rule.major(), rule.minor()) else { return false };
        let character = matches!(rule.typ(), Some(LinuxDeviceType::C | LinuxDeviceType::U));
        let own = character && (is_guest_native(major, minor) || major == PSEUDO_TERMINALS);
        let served = devices.iter().any(|device| {
            rule.typ() == Some(device.typ()) && (device.major(), device.minor()) == (major, minor)
        });
        !own && !served
    });
    orphan.map_or(Ok(()), |rule| Err(PlanError::DeviceRule(rule.to_string())))
}

/// Whether the rules allow writing to the device: the last one that matches decides. Without any rule, writing is
/// allowed.
fn is_writable(rules: &[LinuxDeviceCgroup], (major, minor): (i64, i64)) -> bool {
    let fits = |number: Option<i64>, own| number.is_none_or(|number| number < 0 || number == own);
    let deciding = rules.iter().rev().find(|rule| {
        matches!(rule.typ().unwrap_or_default(), LinuxDeviceType::A | LinuxDeviceType::B)
            && fits(rule.major(), major)
            && fits(rule.minor(), minor)
            && rule.access().as_ref().is_none_or(|access| access.is_empty() || access.contains('w'))
    });
    rules.is_empty() || deciding.is_some_and(LinuxDeviceCgroup::allow)
}

/// The PCI functions to pass through: those of every VFIO group among the entries.
fn plan_functions(
    devices: &[LinuxDevice],
    chosen: &[(PciAddress, PassthroughMode)],
    facts: &HostFacts,
) -> Result<Vec<PassthroughFunction>, PlanError> {
    let mut functions: Vec<PassthroughFunction> = Vec::new();
    for device in once_each(devices) {
        let number = (device.major(), device.minor());
        if !matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U) {
            continue;
        }
        if let Some(group) = facts.vfio.get(&number) {
            if functions.iter().any(|function| function.group == group.number) {
                let reason =
                    format!("IOMMU group {} has another entry already; remove one of them", group.number);
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

fn disk(path: &Path, number: (i64, i64), node: &Path, rules: &[LinuxDeviceCgroup]) -> Disk {
    let (major, minor) = number;
    let read_only = !is_writable(rules, number);
    Disk { node: node.into(), container_path: path.into(), major, minor, read_only }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceBuilder;

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
        let disks = plan_disks(&devices, &[], &facts()).unwrap();
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
    fn an_entry_that_is_there_twice_is_one_disk() {
        let twice = [
            device("/dev/xvda", LinuxDeviceType::B, 7, 0),
            device("/dev/xvda", LinuxDeviceType::B, 7, 0),
            device("/dev/alias", LinuxDeviceType::B, 7, 0),
        ];
        let disks = plan_disks(&twice, &[], &facts()).unwrap();
        let paths: Vec<_> = disks.iter().map(|disk| disk.container_path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/dev/xvda", "/dev/alias"]);
    }

    fn rules(rules: serde_json::Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(rules).unwrap()
    }

    #[test]
    fn a_disk_is_read_only_when_its_rules_say_so() {
        let devices = [device("/dev/xvda", LinuxDeviceType::B, 7, 0)];
        let own = |access: &str| serde_json::json!({"allow": true, "type": "b", "major": 7, "minor": 0, "access": access});
        let all = |allow: bool| serde_json::json!({"allow": allow, "access": "rwm"});
        let wide = serde_json::json!({"allow": true, "type": "b", "major": 7, "minor": -1, "access": "rw"});
        let character = serde_json::json!({"allow": true, "type": "c", "access": "rwm"});
        for (list, read_only) in [
            (serde_json::json!([]), false),
            (serde_json::json!([own("r")]), true),
            (serde_json::json!([own("r"), own("rwm")]), false),
            (serde_json::json!([all(true)]), false),
            (serde_json::json!([all(false), character]), true),
            (serde_json::json!([all(false), wide]), false),
            (serde_json::json!([own("rwm"), all(false), own("r")]), true),
        ] {
            let disks = plan_disks(&devices, &rules(list.clone()), &facts()).unwrap();
            assert_eq!(disks[0].read_only, read_only, "{list}");
        }
    }

    #[test]
    fn a_rule_for_a_device_of_the_host_that_is_not_lent_is_refused() {
        let devices = [device("/dev/xvda", LinuxDeviceType::B, 7, 0)];
        let list = |typ: &str, minor: i64| {
            rules(
                serde_json::json!([{"allow": true, "type": typ, "major": 7, "minor": minor, "access": "rw"}]),
            )
        };
        for (typ, minor) in [("b", 1), ("c", 0), ("a", 0)] {
            let error = plan_disks(&devices, &list(typ, minor), &facts()).unwrap_err();
            assert_eq!(error, PlanError::DeviceRule(format!("{typ} 7:{minor} rw")));
        }
        assert!(plan_disks(&devices, &list("b", 0), &facts()).is_ok());
        assert!(plan_disks(&devices, &list("b", -1), &facts()).is_ok());
        for (typ, major, minor) in [("c", 1, 3), ("c", 10, 200), ("c", 136, 5)] {
            let own = serde_json::json!([{"allow": true, "type": typ, "major": major, "minor": minor, "access": "rwm"}]);
            assert!(plan_disks(&devices, &rules(own), &facts()).is_ok());
        }
        let denied = rules(serde_json::json!([{"allow": false, "type": "b", "major": 9, "minor": 1}]));
        assert!(plan_disks(&devices, &denied, &facts()).is_ok());
    }

    #[test]
    fn other_devices_are_refused_by_path() {
        for bad in [
            device("/dev/kvm", LinuxDeviceType::C, 10, 232),
            device("/dev/sdz", LinuxDeviceType::B, 8, 400),
            device("/dev/all", LinuxDeviceType::A, 0, 0),
        ] {
            let error = plan_disks(std::slice::from_ref(&bad), &[], &facts()).unwrap_err();
            assert!(error.to_string().contains(bad.path().to_str().unwrap()), "{error}");
        }
    }
}
