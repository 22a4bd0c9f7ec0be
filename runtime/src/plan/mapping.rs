//! The devices of a container entry by entry, on the host and in the guest, as `kiai inspect --devices` shows them.
//! Plain data.
//!
//! A plan fills in the host's side; the guest's side is known once the agent has found the device.

use std::path::PathBuf;

use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceType;
use serde::Deserialize;
use serde::Serialize;

use super::ContainerPlan;
use super::Disk;
use super::PassthroughFunction;
use super::PassthroughMode;
use super::VfioInterface;
use super::devices::once_each;

/// All devices of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceMap {
    /// One device for each entry of `linux.devices`, in its order and without repetitions; for an IOMMU group one for
    /// each of its functions.
    pub devices: Vec<MappedDevice>,
    /// The container also has a node of every other device of the guest.
    pub all_devices: bool,
    /// The device rules in force, in the guest's numbers and in order: the last one that matches decides. Empty until
    /// the container exists.
    pub rules: Vec<String>,
}

/// One device of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MappedDevice {
    /// Path of the entry in the spec.
    pub entry: PathBuf,
    /// The device on the host.
    pub host: HostSide,
    /// How the guest gets the device.
    pub attachment: Attachment,
    /// The device in the guest, once the agent has found it.
    pub guest: Option<GuestSide>,
}

/// A device on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostSide {
    /// `b` or `c`.
    pub kind: String,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Node of a block device that is assigned.
    pub node: Option<PathBuf>,
    /// Address of a PCI function that is assigned.
    pub pci_address: Option<String>,
    /// The interface by which that function is opened.
    #[serde(default)]
    pub vfio: Option<VfioInterface>,
}

/// How the guest gets a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// Nothing is attached: the guest's kernel has the device itself.
    GuestsOwn,
    /// A virtio disk.
    Disk,
    /// A read-only virtio disk.
    ReadOnlyDisk,
    /// A PCI function that the guest's kernel drives.
    GuestDriver,
    /// A PCI function that a program in the container drives.
    UserSpace,
}

impl std::fmt::Display for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::GuestsOwn => "the guest's own",
            Self::Disk => "virtio disk",
            Self::ReadOnlyDisk => "virtio disk, read-only",
            Self::GuestDriver => "guest's driver",
            Self::UserSpace => "user space",
        })
    }
}

/// A device in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestSide {
    /// The device's path in the container.
    pub path: PathBuf,
    /// `b` or `c`.
    pub kind: String,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// The guest's own node of a device that is assigned.
    pub node: Option<PathBuf>,
    /// PCI path of a device that is assigned: slot and function on each bridge's bus.
    pub pci_path: Option<String>,
    /// The letters of `rwm` that the device rules allow.
    pub access: String,
}

impl DeviceMap {
    /// The host's side of a plan.
    pub fn of_plan(plan: &ContainerPlan) -> Self {
        let entries = plan.spec.linux().as_ref().and_then(|linux| linux.devices().as_deref());
        let map = Self::of(entries.unwrap_or_default(), &plan.disks, &plan.functions);
        Self { all_devices: plan.all_devices, ..map }
    }

    /// The host's side of entries, with the disks and functions that are assigned for them.
    pub fn of(entries: &[LinuxDevice], disks: &[Disk], functions: &[PassthroughFunction]) -> Self {
        let devices = once_each(entries).flat_map(|entry| of_entry(entry, disks, functions)).collect();
        Self { devices, ..Self::default() }
    }
}

impl MappedDevice {
    fn of_disk(disk: &Disk) -> Self {
        Self {
            entry: disk.container_path.clone(),
            host: HostSide {
                kind: "b".to_owned(),
                major: disk.major,
                minor: disk.minor,
                node: Some(disk.node.clone()),
                pci_address: None,
                vfio: None,
            },
            attachment: if disk.read_only { Attachment::ReadOnlyDisk } else { Attachment::Disk },
            guest: None,
        }
    }
}

/// The devices of an entry: one, for an IOMMU group one for each of its functions, for a fifo none.
fn of_entry(entry: &LinuxDevice, disks: &[Disk], functions: &[PassthroughFunction]) -> Vec<MappedDevice> {
    let kind = match entry.typ() {
        LinuxDeviceType::B => "b",
        LinuxDeviceType::C | LinuxDeviceType::U => "c",
        LinuxDeviceType::A | LinuxDeviceType::P => return Vec::new(),
    };
    let mapped = |attachment, function: Option<&PassthroughFunction>| MappedDevice {
        entry: entry.path().clone(),
        host: HostSide {
            kind: kind.to_owned(),
            major: entry.major(),
            minor: entry.minor(),
            node: None,
            pci_address: function.map(|function| function.address.to_string()),
            vfio: function.map(|function| function.interface.clone()),
        },
        attachment,
        guest: None,
    };
    if let Some(disk) = disks.iter().find(|disk| disk.container_path == *entry.path()) {
        return vec![MappedDevice::of_disk(disk)];
    }
    let functions = functions.iter().filter(|function| function.container_path == *entry.path());
    let functions: Vec<_> = functions
        .map(|function| match function.mode {
            PassthroughMode::GuestDriver => mapped(Attachment::GuestDriver, Some(function)),
            PassthroughMode::UserSpace => mapped(Attachment::UserSpace, Some(function)),
        })
        .collect();
    if functions.is_empty() { vec![mapped(Attachment::GuestsOwn, None)] } else { functions }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Annotations;
    use crate::plan::BlockDevice;
    use crate::plan::HostFacts;
    use crate::plan::plan_container;

    #[test]
    fn each_entry_is_shown_with_how_it_gets_there() {
        let spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.1.0",
            "process": {"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0}},
            "linux": {
                "devices": [
                    {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
                    {"path": "/dev/a", "type": "b", "major": 7, "minor": 0},
                    {"path": "/dev/again", "type": "b", "major": 7, "minor": 0},
                    {"path": "/dev/a", "type": "b", "major": 7, "minor": 0},
                    {"path": "/dev/pipe", "type": "p"},
                ],
                "resources": {"devices": [{"allow": true, "type": "b", "major": 7, "minor": 0, "access": "r"}]},
            },
        }))
        .unwrap();
        let node = BlockDevice { node: "/dev/loop0".into() };
        let facts = HostFacts { block_devices: [((7, 0), node)].into(), ..HostFacts::default() };
        let annotations = Annotations { all_devices: true, ..Annotations::default() };
        let map = DeviceMap::of_plan(&plan_container("c", &spec, &annotations, &facts).unwrap());
        let shown: Vec<_> = map
            .devices
            .iter()
            .map(|device| {
                let node = device.host.node.as_ref().map_or("-".into(), |node| node.display().to_string());
                format!("{} {node} {}", device.entry.display(), device.attachment)
            })
            .collect();
        assert_eq!(
            shown,
            [
                "/dev/fuse - the guest's own",
                "/dev/a /dev/loop0 virtio disk, read-only",
                "/dev/again /dev/loop0 virtio disk, read-only",
            ]
        );
        assert!(map.all_devices && map.rules.is_empty());
        let json = serde_json::to_string(&map).unwrap();
        assert_eq!(serde_json::from_str::<DeviceMap>(&json).unwrap(), map);
    }
}
