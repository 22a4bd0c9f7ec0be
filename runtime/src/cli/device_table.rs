//! The devices of a container as a table: the spec's entry, the host's device, the guest's device.

use crate::cli::format;
use crate::plan::DeviceMap;
use crate::plan::MappedDevice;

/// The text of an empty cell.
const NONE: &str = "-";

/// The table, and below it the device rules.
pub(super) fn of(map: &DeviceMap) -> String {
    let located = map.devices.iter().any(|device| device.guest.is_some());
    let mut text = if map.devices.is_empty() {
        "no devices except those of every container\n".to_owned()
    } else if located {
        let heading = ["ENTRY", "HOST", "ATTACHED", "PCI PATH", "GUEST", "IN THE CONTAINER", "ALLOWED"];
        format::table(&heading, &map.devices.iter().map(row).collect::<Vec<_>>())
    } else {
        let rows: Vec<_> = map.devices.iter().map(|device| row(device)[..3].to_vec()).collect();
        format::table(&["ENTRY", "HOST", "ATTACHED"], &rows)
    };
    if map.all_devices {
        text.push_str("and every other device of the guest\n");
    }
    if !map.rules.is_empty() {
        text.push_str("\nRules in force, of which the last one that matches decides:\n");
        for rule in &map.rules {
            text.push_str(&format!("  {rule}\n"));
        }
    }
    text
}

fn row(device: &MappedDevice) -> Vec<String> {
    let host = &device.host;
    let node = host.node.as_ref().map(|node| node.display().to_string());
    let host_name = node.or_else(|| host.pci_address.clone());
    let numbers = format!("{} {}:{}", host.kind, host.major, host.minor);
    let attached = match &host.vfio {
        Some(interface) => format!("VFIO ({interface}), {}", device.attachment),
        None => device.attachment.to_string(),
    };
    let mut row = vec![
        device.entry.display().to_string(),
        host_name.map_or_else(|| numbers.clone(), |name| format!("{numbers} {name}")),
        attached,
    ];
    let Some(guest) = &device.guest else {
        row.extend([NONE; 4].map(str::to_owned));
        return row;
    };
    let numbers = format!("{} {}:{}", guest.kind, guest.major, guest.minor);
    row.extend([
        guest.pci_path.clone().unwrap_or_else(|| NONE.to_owned()),
        guest.node.as_ref().map_or_else(|| numbers.clone(), |node| format!("{numbers} {}", node.display())),
        guest.path.display().to_string(),
        if guest.access.is_empty() { "nothing".to_owned() } else { guest.access.clone() },
    ]);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Attachment;
    use crate::plan::GuestSide;
    use crate::plan::HostSide;
    use crate::plan::VfioInterface;

    fn map() -> DeviceMap {
        let host = |kind: &str, major, minor, node: Option<&str>, address: Option<&str>| HostSide {
            kind: kind.into(),
            major,
            minor,
            node: node.map(Into::into),
            pci_address: address.map(str::to_owned),
            vfio: address.map(|_| VfioInterface::Cdev("/dev/vfio/devices/vfio0".into())),
        };
        let guest = |path: &str,
                     kind: &str,
                     numbers: (i64, i64),
                     node: Option<&str>,
                     pci: Option<&str>,
                     access: &str| {
            Some(GuestSide {
                path: path.into(),
                kind: kind.into(),
                major: numbers.0,
                minor: numbers.1,
                node: node.map(Into::into),
                pci_path: pci.map(str::to_owned),
                access: access.into(),
            })
        };
        DeviceMap {
            devices: vec![
                MappedDevice {
                    entry: "/dev/xvda".into(),
                    host: host("b", 7, 0, Some("/dev/loop0"), None),
                    attachment: Attachment::ReadOnlyDisk,
                    guest: guest("/dev/xvda", "b", (254, 16), Some("/dev/vdb"), Some("06.0"), "r"),
                },
                MappedDevice {
                    entry: "/dev/vfio/12".into(),
                    host: host("c", 243, 0, None, Some("0000:00:03.0")),
                    attachment: Attachment::GuestDriver,
                    guest: guest("/dev/nvme0n1", "b", (259, 0), Some("/dev/nvme0n1"), Some("07.0"), "rwm"),
                },
                MappedDevice {
                    entry: "/dev/fuse".into(),
                    host: host("c", 10, 229, None, None),
                    attachment: Attachment::GuestsOwn,
                    guest: guest("/dev/fuse", "c", (10, 229), None, None, ""),
                },
            ],
            all_devices: false,
            rules: vec!["deny a *:* rwm".into(), "allow b 254:16 r".into()],
        }
    }

    #[test]
    fn a_table_shows_both_sides_of_each_device() {
        let expected = "\
ENTRY          HOST                   ATTACHED                      PCI PATH   GUEST                  IN THE CONTAINER   ALLOWED
/dev/xvda      b 7:0 /dev/loop0       virtio disk, read-only        06.0       b 254:16 /dev/vdb      /dev/xvda          r
/dev/vfio/12   c 243:0 0000:00:03.0   VFIO (cdev), guest's driver   07.0       b 259:0 /dev/nvme0n1   /dev/nvme0n1       rwm
/dev/fuse      c 10:229               the guest's own               -          c 10:229               /dev/fuse          nothing

Rules in force, of which the last one that matches decides:
  deny a *:* rwm
  allow b 254:16 r
";
        assert_eq!(of(&map()), expected);
    }

    #[test]
    fn a_function_is_shown_with_how_it_was_opened() {
        let mut map = map();
        let function = &mut map.devices[1];
        function.host.vfio = Some(VfioInterface::Group(12));
        assert_eq!(row(function)[2], "VFIO (group 12), guest's driver");
        let json = serde_json::to_value(&function.host).unwrap();
        assert_eq!(json["vfio"], serde_json::json!({"group": 12}));
    }

    #[test]
    fn a_plan_shows_the_hosts_side() {
        let mut map = map();
        map.rules.clear();
        map.all_devices = true;
        map.devices.truncate(1);
        map.devices[0].guest = None;
        let expected = "\
ENTRY       HOST               ATTACHED
/dev/xvda   b 7:0 /dev/loop0   virtio disk, read-only
and every other device of the guest
";
        assert_eq!(of(&map), expected);
        assert_eq!(of(&DeviceMap::default()), "no devices except those of every container\n");
    }
}
