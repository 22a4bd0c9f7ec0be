//! Batches on paper: what is planned, what has a claim to what, and what goes.

use oci_spec::runtime::LinuxDeviceBuilder;
use oci_spec::runtime::LinuxDeviceType;
use oci_spec::runtime::Process;

use super::*;
use crate::container::PlugVolume;

fn entry(path: &str, typ: LinuxDeviceType, major: i64, minor: i64) -> LinuxDevice {
    LinuxDeviceBuilder::default().path(path).typ(typ).major(major).minor(minor).build().unwrap()
}

fn plan(plug: &Plug, there: &There<'_>) -> Result<Batch, String> {
    Batch::plan(plug, &Process::default(), there).map_err(|error| error.to_string())
}

fn of_devices(devices: &[LinuxDevice]) -> Plug {
    Plug { devices: devices.to_vec(), ..Plug::default() }
}

/// A plugged device without an assignment.
fn plugged(entry: LinuxDevice, address: Option<&str>) -> PluggedDevice {
    PluggedDevice { entry, address: address.map(|at| at.parse().unwrap()), assignment: Assignment::default() }
}

#[test]
fn one_place_is_for_one_volume() {
    let folder = tempfile::tempdir().unwrap();
    let volumes = |destinations: &[&str]| {
        let volume = |destination: &&str| PlugVolume {
            source: folder.path().into(),
            destination: destination.into(),
            read_only: false,
        };
        Plug { volumes: destinations.iter().map(volume).collect(), ..Plug::default() }
    };
    let batch = plan(&volumes(&["/a/", "/b"]), &There::default()).unwrap();
    assert_eq!(batch.volumes[0].wanted.destination.as_os_str(), "/a");
    let error = plan(&volumes(&["/a", "//a/"]), &There::default()).unwrap_err();
    assert_eq!(error, "volume at /a: already exists");
    let there = There { volumes: vec![&batch.volumes[1].wanted], ..There::default() };
    assert_eq!(plan(&volumes(&["/b"]), &there).unwrap_err(), "volume at /b: already exists");
}

#[test]
fn one_path_is_for_one_device_but_a_groups_row_for_each_function() {
    let fuse = || entry("/dev/fuse", LinuxDeviceType::C, 10, 229);
    let batch = plan(&of_devices(&[fuse(), entry("/dev//x", LinuxDeviceType::C, 1, 3)]), &There::default());
    let batch = batch.unwrap();
    let all: Vec<_> = batch.devices().iter().map(|(entry, _)| entry.path().display().to_string()).collect();
    assert_eq!(all, ["/dev/fuse", "/dev/x"]);
    assert_eq!(
        plan(&of_devices(&[fuse(), fuse()]), &There::default()).unwrap_err(),
        "device /dev/fuse: already exists"
    );
    let there = There { entries: vec![&batch.entries[0]], ..There::default() };
    assert_eq!(plan(&of_devices(&[fuse()]), &there).unwrap_err(), "device /dev/fuse: already exists");
    let other = entry("/dev/fuse", LinuxDeviceType::C, 1, 5);
    assert_eq!(plan(&of_devices(&[other]), &there).unwrap_err(), "device /dev/fuse: already exists");
    for (bad, word) in [
        (entry("/", LinuxDeviceType::C, 1, 3), "device /: "),
        (entry("x", LinuxDeviceType::C, 1, 3), "device x: "),
        (entry("/dev/kvm", LinuxDeviceType::C, 10, 232), "device /dev/kvm: "),
        (entry("/dev/none", LinuxDeviceType::B, 4000, 1), "device /dev/none: "),
        (entry("/dev/pipe", LinuxDeviceType::P, 0, 0), "device /dev/pipe: type \"p\""),
    ] {
        let error = plan(&of_devices(&[bad]), &There::default()).unwrap_err();
        assert!(error.starts_with(word), "{error}");
    }
}

#[test]
fn a_request_with_a_word_nobody_knows_is_refused() {
    let plug: Plug = serde_json::from_str(r#"{"interfaces": ["eth1"]}"#).unwrap();
    assert_eq!((plug.interfaces.len(), plug.volumes.len()), (1, 0));
    assert!(serde_json::from_str::<Plug>(r#"{"disks": []}"#).is_err());
    let volume = r#"{"volumes": [{"source": "/a", "destination": "/b", "size": 1}]}"#;
    assert!(serde_json::from_str::<Plug>(volume).is_err());
    let functions = r#"{"functions": [["0000:00:03.0", "user-space"]], "vendorDevices": ["v.com/c=1"]}"#;
    let plug: Plug = serde_json::from_str(functions).unwrap();
    assert_eq!(serde_json::from_str::<Plug>(&serde_json::to_string(&plug).unwrap()).unwrap(), plug);
    assert!(serde_json::from_str::<Plug>(r#"{"vendorDevices": ["nonsense"]}"#).is_err());
}

#[test]
fn what_two_devices_of_a_vendor_need_goes_with_the_last() {
    let disk = |path: &str| entry(path, LinuxDeviceType::B, 7, 0);
    let claim = |name: &str, path: &str| (name.parse().unwrap(), Thing::Entry(path.into()));
    let mut there = Plugged {
        devices: ["/dev/common", "/dev/one", "/dev/two", "/dev/plain"]
            .map(|path| plugged(disk(path), None))
            .into_iter()
            .collect(),
        claims: vec![
            claim("v.com/c=1", "/dev/common"),
            claim("v.com/c=1", "/dev/one"),
            claim("v.com/c=2", "/dev/common"),
            claim("v.com/c=2", "/dev/two"),
        ],
        ..Plugged::default()
    };
    let mut unplug = |word: &str| {
        let unplug = Unplug { devices: vec![word.parse().unwrap()], ..Unplug::default() };
        let gone = there.leaving(unplug).map(|leaving| there.split_off(&leaving))?;
        let gone = gone.devices.iter().map(|device| device.entry.path().display().to_string());
        Ok::<_, String>(gone.collect::<Vec<_>>())
    };
    assert_eq!(unplug("v.com/c=3"), Err("device v.com/c=3".to_owned()));
    assert_eq!(unplug("v.com/c=1").unwrap(), ["/dev/one"]);
    assert!(unplug("v.com/c=1").is_err());
    assert_eq!(unplug("/dev/two").unwrap(), ["/dev/two"]);
    assert_eq!(unplug("v.com/c=2").unwrap(), ["/dev/common"]);
    assert!(unplug("/dev/two").is_err());
    assert_eq!(unplug("/dev/plain").unwrap(), ["/dev/plain"]);
}

#[test]
fn a_function_is_unplugged_by_its_address_and_a_group_by_its_path() {
    let group = || entry("/dev/vfio/12", LinuxDeviceType::C, 243, 4);
    let there = || Plugged {
        devices: vec![plugged(group(), Some("00:03.0")), plugged(group(), Some("00:03.1"))],
        ..Plugged::default()
    };
    let unplug = |word: &str| {
        let mut there = there();
        let unplug = Unplug { devices: vec![word.parse().unwrap()], ..Unplug::default() };
        let leaving = there.leaving(unplug)?;
        let gone = there.split_off(&leaving).devices.into_iter();
        Ok::<_, String>(gone.map(|device| device.address.unwrap().to_string()).collect::<Vec<_>>())
    };
    assert_eq!(unplug("pci:00:03.1").unwrap(), ["0000:00:03.1"]);
    assert_eq!(unplug("/dev/vfio/12").unwrap(), ["0000:00:03.0", "0000:00:03.1"]);
    assert_eq!(unplug("pci:00:03.2"), Err("device pci:0000:00:03.2".to_owned()));
}
