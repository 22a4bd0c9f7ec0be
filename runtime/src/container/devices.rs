//! Where the devices of a container ended up, written down in the bundle for `kiai inspect --devices`.

use std::path::Path;
use std::path::PathBuf;

use kiai_protocol::agent::CreateContainerResponse;
use kiai_protocol::agent::Device;
use kiai_protocol::agent::FoundDevice;
use kiai_protocol::agent::PlugResponse;
use kiai_protocol::agent::device_locator::By;

use crate::plan::DeviceMap;
use crate::plan::Disk;
use crate::plan::GuestSide;
use crate::plan::MappedDevice;
use crate::store::file::FileError;
use crate::store::file::read_json;
use crate::store::file::write_json;

/// File in the bundle with a [`DeviceMap`].
pub const DEVICES: &str = "devices.json";

/// Writes the whole mapping into the bundle: what was planned, and what the agent says it found. `sent` is what
/// it was asked to find.
pub(super) fn record(
    bundle: &Path,
    planned: DeviceMap,
    sent: &[Device],
    answer: CreateContainerResponse,
) -> Result<(), FileError> {
    write_json(&bundle.join(DEVICES), &completed(planned, sent, answer))
}

/// Adds disks that were plugged in to what is written down, and takes those at `gone` out; `answer` has the rules now
/// in force.
pub(super) fn record_change(
    bundle: &Path,
    disks: &[Disk],
    gone: &[PathBuf],
    answer: PlugResponse,
) -> Result<(), FileError> {
    let path = bundle.join(DEVICES);
    let mut map: DeviceMap = read_json(&path)?.unwrap_or_default();
    map.devices.retain(|device| !gone.contains(&device.entry));
    map.devices.extend(disks.iter().map(|disk| {
        let found = answer.devices.iter().find(|found| disk.container_path == Path::new(&found.entry));
        MappedDevice { guest: found.map(guest_side), ..MappedDevice::of_disk(disk) }
    }));
    map.rules = answer.device_rules;
    write_json(&path, &map)
}

fn completed(planned: DeviceMap, sent: &[Device], answer: CreateContainerResponse) -> DeviceMap {
    // Of several functions in one IOMMU group, the one that was put where the agent found the node.
    let host_address = |found: &FoundDevice| {
        let at = |device: &&Device| match &device.locator.by {
            Some(By::PciFunction(path) | By::PciVfio(path)) => *path == found.pci_path,
            _ => false,
        };
        sent.iter().find(at).map(|device| device.host_pci_address.clone())
    };
    let mut devices = Vec::new();
    for device in planned.devices {
        let mut found = answer
            .devices
            .iter()
            .filter(|found| device.entry == Path::new(&found.entry))
            .filter(|found| {
                device.host.pci_address.is_none() || device.host.pci_address == host_address(found)
            })
            .peekable();
        if found.peek().is_none() {
            devices.push(device);
            continue;
        }
        for found in found {
            let mut device = device.clone();
            device.guest = Some(guest_side(found));
            devices.push(device);
        }
    }
    DeviceMap { devices, rules: answer.device_rules, ..planned }
}

fn guest_side(found: &FoundDevice) -> GuestSide {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    GuestSide {
        path: found.container_path.clone().into(),
        kind: found.kind.clone(),
        major: found.major,
        minor: found.minor,
        node: some(&found.node).map(Into::into),
        pci_path: some(&found.pci_path),
        access: found.access.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Attachment;
    use crate::plan::HostSide;

    fn planned(entry: &str, attachment: Attachment, address: Option<&str>) -> MappedDevice {
        let host = HostSide {
            kind: "c".into(),
            major: 243,
            minor: 0,
            node: None,
            pci_address: address.map(str::to_owned),
            vfio: None,
        };
        MappedDevice { entry: entry.into(), host, attachment, guest: None }
    }

    fn sent(address: &str, path: &str) -> Device {
        let mut device = Device::new();
        device.locator.mut_or_insert_default().set_pci_function(path.into());
        device.host_pci_address = address.into();
        device
    }

    fn found(entry: &str, path: &str, pci_path: &str) -> FoundDevice {
        let mut found = FoundDevice::new();
        (found.entry, found.container_path, found.pci_path) = (entry.into(), path.into(), pci_path.into());
        found
    }

    #[test]
    fn each_function_of_a_group_gets_its_own_nodes_and_what_was_not_found_stays() {
        let group = "/dev/vfio/12";
        let map = DeviceMap {
            devices: vec![
                planned(group, Attachment::GuestDriver, Some("0000:00:03.0")),
                planned(group, Attachment::GuestDriver, Some("0000:00:03.1")),
                planned("/dev/fuse", Attachment::GuestsOwn, None),
                planned("/dev/tty9", Attachment::GuestsOwn, None),
            ],
            ..DeviceMap::default()
        };
        let mut answer = CreateContainerResponse::new();
        answer.devices = vec![
            found("/dev/fuse", "/dev/fuse", ""),
            found(group, "/dev/nvme0n1", "05.0"),
            found(group, "/dev/nvme0n1p1", "05.0"),
            found(group, "/dev/nvme1n1", "05.1"),
        ];
        answer.device_rules = vec!["allow c 10:229 rwm".into()];
        let map = completed(map, &[sent("0000:00:03.0", "05.0"), sent("0000:00:03.1", "05.1")], answer);
        let rows: Vec<_> = map
            .devices
            .iter()
            .map(|device| {
                let path = device.guest.as_ref().map_or("?".into(), |guest| guest.path.display().to_string());
                format!("{} {path}", device.host.pci_address.as_deref().unwrap_or("-"))
            })
            .collect();
        assert_eq!(
            rows,
            [
                "0000:00:03.0 /dev/nvme0n1",
                "0000:00:03.0 /dev/nvme0n1p1",
                "0000:00:03.1 /dev/nvme1n1",
                "- /dev/fuse",
                "- ?",
            ]
        );
        assert_eq!(map.rules, ["allow c 10:229 rwm"]);
    }
}
