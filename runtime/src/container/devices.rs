//! Where the devices of a container ended up, written down in the bundle for `kiai inspect --devices`.

use std::path::Path;

use kiai_protocol::agent::CreateContainerResponse;
use kiai_protocol::agent::Device;
use kiai_protocol::agent::FoundDevice;
use kiai_protocol::agent::PlugResponse;
use kiai_protocol::agent::device_locator::By;

use crate::plan::DeviceMap;
use crate::plan::GuestSide;
use crate::plan::MappedDevice;
use crate::store::file::FileError;
use crate::store::file::read_json;
use crate::store::file::write_json;

/// File in the bundle with a [`DeviceMap`].
pub const DEVICES: &str = "devices.json";

/// Of more devices, and of more rules, that a guest says it has none is written down.
const MOST_FOUND: usize = 1024;

/// Writes the whole mapping into the bundle: what was planned, and what the agent says it found. `sent` is what
/// it was asked to find.
pub(super) fn record(
    bundle: &Path,
    planned: DeviceMap,
    sent: &[Device],
    answer: CreateContainerResponse,
) -> Result<(), FileError> {
    write_json(&bundle.join(DEVICES), &completed(planned, sent, answer.devices, answer.device_rules))
}

/// What was plugged in is among what is written down from here on.
pub(super) fn record_plugged(
    bundle: &Path,
    planned: DeviceMap,
    sent: &[Device],
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

/// What was unplugged is written down no more. Of a PCI function an entry comes with its address. What the agent says
/// is there still, the container was made with.
pub(super) fn record_unplugged(
    bundle: &Path,
    gone: &[(&Path, Option<String>)],
    answer: PlugResponse,
) -> Result<(), FileError> {
    change(bundle, |map| {
        let is_gone = |device: &MappedDevice| {
            gone.iter().any(|(entry, address)| device.entry == *entry && device.host.pci_address == *address)
        };
        let stays = |device: &MappedDevice| {
            let found = |found: &FoundDevice| device.entry == Path::new(&found.entry);
            device.host.pci_address.is_none() && answer.devices.iter().any(found)
        };
        map.devices.retain(|device| !is_gone(device) || stays(device));
        map.rules = answer.device_rules;
    })
}

fn change(bundle: &Path, how: impl FnOnce(&mut DeviceMap)) -> Result<(), FileError> {
    let path = bundle.join(DEVICES);
    let mut map: DeviceMap = read_json(&path)?.unwrap_or_default();
    how(&mut map);
    write_json(&path, &map)
}

fn completed(planned: DeviceMap, sent: &[Device], found: Vec<FoundDevice>, rules: Vec<String>) -> DeviceMap {
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
        // The agent tells of the entry, and so of both.
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

        // What the container was made with is written down once, whatever comes and goes.
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
