//! The record of a container's devices in its bundle, which `kiai inspect --devices` reads.

use std::path::Path;

use kiai_protocol::agent::ContainerDevice;
use kiai_protocol::agent::CreateContainerResponse;
use kiai_protocol::agent::DeviceAssignment;
use kiai_protocol::agent::PlugResponse;
use kiai_protocol::agent::device_locator::By;

use crate::plan::DeviceMap;
use crate::plan::GuestSide;
use crate::plan::MappedDevice;
use crate::store::file::FileError;
use crate::store::file::read_json;
use crate::store::file::write_json;

/// The file in the bundle, a [`DeviceMap`].
pub const DEVICES: &str = "devices.json";

/// The most devices, and the most rules, of a guest's answer that are recorded.
const MOST_FOUND: usize = 1024;

/// Records a new container's devices: the planned ones, completed by the agent's answer. `sent` are the assignments
/// that the agent was told of.
pub(super) fn record(
    bundle: &Path,
    planned: DeviceMap,
    sent: &[DeviceAssignment],
    answer: CreateContainerResponse,
) -> Result<(), FileError> {
    write_json(&bundle.join(DEVICES), &completed(planned, sent, answer.devices, answer.device_rules))
}

/// Adds devices that were plugged in to the record.
pub(super) fn record_plugged(
    bundle: &Path,
    planned: DeviceMap,
    sent: &[DeviceAssignment],
    answer: PlugResponse,
) -> Result<(), FileError> {
    change(bundle, |map| {
        let planned = DeviceMap { all_devices: map.all_devices, ..planned };
        let plugged = completed(planned, sent, answer.devices, answer.device_rules);
        let new = plugged.devices.into_iter().filter(|device| !map.devices.contains(device));
        let new: Vec<_> = new.collect();
        map.devices.extend(new);
        map.rules = plugged.rules;
    })
}

/// Removes devices that were unplugged from the record, each named by its entry's path and, for a PCI function, its
/// address. An entry that the agent still reports stays: the container was created with it.
pub(super) fn record_unplugged(
    bundle: &Path,
    removed: &[(&Path, Option<String>)],
    answer: PlugResponse,
) -> Result<(), FileError> {
    change(bundle, |map| {
        let is_removed = |device: &MappedDevice| {
            removed
                .iter()
                .any(|(entry, address)| device.entry == *entry && device.host.pci_address == *address)
        };
        let stays = |device: &MappedDevice| {
            let found = |found: &ContainerDevice| device.entry == Path::new(&found.entry);
            device.host.pci_address.is_none() && answer.devices.iter().any(found)
        };
        map.devices.retain(|device| !is_removed(device) || stays(device));
        map.rules = answer.device_rules;
    })
}

fn change(bundle: &Path, how: impl FnOnce(&mut DeviceMap)) -> Result<(), FileError> {
    let path = bundle.join(DEVICES);
    let mut map: DeviceMap = read_json(&path)?.unwrap_or_default();
    how(&mut map);
    write_json(&path, &map)
}

fn completed(
    planned: DeviceMap,
    sent: &[DeviceAssignment],
    found: Vec<ContainerDevice>,
    rules: Vec<String>,
) -> DeviceMap {
    // Several functions may serve one entry: the node belongs to the function with the node's PCI path.
    let host_address = |found: &ContainerDevice| {
        let at = |device: &&DeviceAssignment| match &device.locator.by {
            Some(By::PciFunction(path) | By::PciVfio(path)) => *path == found.pci_path,
            _ => false,
        };
        sent.iter().find(at).map(|device| device.host_pci_address.clone())
    };
    let mut devices = Vec::new();
    for device in planned.devices {
        let mut found = found
            .iter()
            .take(MOST_FOUND)
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
    let rules = rules.into_iter().take(MOST_FOUND).collect();
    DeviceMap { devices, rules, ..planned }
}

fn guest_side(found: &ContainerDevice) -> GuestSide {
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

    fn sent(address: &str, path: &str) -> DeviceAssignment {
        let mut device = DeviceAssignment::new();
        device.locator.mut_or_insert_default().set_pci_function(path.into());
        device.host_pci_address = address.into();
        device
    }

    fn found(entry: &str, path: &str, pci_path: &str) -> ContainerDevice {
        let mut found = ContainerDevice::new();
        (found.entry, found.container_path, found.pci_path) = (entry.into(), path.into(), pci_path.into());
        found
    }

    #[test]
    fn what_was_unplugged_is_gone_and_its_neighbours_are_not() {
        let bundle = tempfile::tempdir().unwrap();
        let group = "/dev/vfio/12";
        let plug = |devices, answer: PlugResponse| {
            let planned = DeviceMap { devices, ..DeviceMap::default() };
            let sent = [sent("0000:00:03.0", "05.0"), sent("0000:00:03.1", "05.1")];
            record_plugged(bundle.path(), planned, &sent, answer).unwrap();
        };
        let mut answer = PlugResponse::new();
        answer.devices = vec![found(group, "/dev/vfio/noiommu-0", "05.0")];
        plug(vec![planned(group, Attachment::UserSpace, Some("0000:00:03.0"))], answer.clone());
        // The agent reports the whole entry, and so both functions.
        answer.devices.push(found(group, "/dev/vfio/noiommu-1", "05.1"));
        answer.device_rules = vec!["allow c 243:0 rwm".into()];
        plug(vec![planned(group, Attachment::UserSpace, Some("0000:00:03.1"))], answer.clone());
        let map = || read_json::<DeviceMap>(&bundle.path().join(DEVICES)).unwrap().unwrap();
        assert_eq!((map().devices.len(), map().rules.len()), (2, 1));
        record_unplugged(
            bundle.path(),
            &[(Path::new(group), Some("0000:00:03.0".into()))],
            PlugResponse::new(),
        )
        .unwrap();
        let left = map().devices;
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].guest.as_ref().unwrap().path, Path::new("/dev/vfio/noiommu-1"));

        // A device that the container was created with is recorded once, whatever is plugged and unplugged.
        let mut answer = PlugResponse::new();
        answer.devices = vec![found("/dev/fuse", "/dev/fuse", "")];
        for _ in 0..2 {
            plug(vec![planned("/dev/fuse", Attachment::GuestsOwn, None)], answer.clone());
            assert_eq!(map().devices.len(), 2);
        }
        record_unplugged(bundle.path(), &[(Path::new("/dev/fuse"), None)], answer).unwrap();
        assert_eq!(map().devices.len(), 2);
        record_unplugged(bundle.path(), &[(Path::new("/dev/fuse"), None)], PlugResponse::new()).unwrap();
        assert_eq!(map().devices.len(), 1);
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
        let answer = vec![
            found("/dev/fuse", "/dev/fuse", ""),
            found(group, "/dev/nvme0n1", "05.0"),
            found(group, "/dev/nvme0n1p1", "05.0"),
            found(group, "/dev/nvme1n1", "05.1"),
        ];
        let rules = vec!["allow c 10:229 rwm".into()];
        let map =
            completed(map, &[sent("0000:00:03.0", "05.0"), sent("0000:00:03.1", "05.1")], answer, rules);
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
