//! Plans of plug requests, the claims of CDI devices, and the selections of unplug requests.

use oci_spec::runtime::LinuxDeviceBuilder;
use oci_spec::runtime::LinuxDeviceType;
use oci_spec::runtime::Process;

use super::*;
use crate::container::PlugVolume;

fn entry(path: &str, typ: LinuxDeviceType, major: i64, minor: i64) -> LinuxDevice {
    LinuxDeviceBuilder::default().path(path).typ(typ).major(major).minor(minor).build().unwrap()
}

fn plan_of(options: &PlugOptions, already: &AlreadyPlugged<'_>) -> Result<PlugPlan, String> {
    PlugPlan::new(options, &Process::default(), already).map_err(|error| error.to_string())
}

fn of_devices(devices: &[LinuxDevice]) -> PlugOptions {
    PlugOptions { devices: devices.to_vec(), ..PlugOptions::default() }
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
        PlugOptions { volumes: destinations.iter().map(volume).collect(), ..PlugOptions::default() }
    };
    let plan = plan_of(&volumes(&["/a/", "/b"]), &AlreadyPlugged::default()).unwrap();
    assert_eq!(plan.volumes[0].needed.destination.as_os_str(), "/a");
    let error = plan_of(&volumes(&["/a", "//a/"]), &AlreadyPlugged::default()).unwrap_err();
    assert_eq!(error, "volume at /a: already exists");
    let already = AlreadyPlugged { volumes: vec![&plan.volumes[1].needed], ..AlreadyPlugged::default() };
    assert_eq!(plan_of(&volumes(&["/b"]), &already).unwrap_err(), "volume at /b: already exists");
}

#[test]
fn one_path_is_for_one_device_but_a_groups_row_for_each_function() {
    let fuse = || entry("/dev/fuse", LinuxDeviceType::C, 10, 229);
    let plan = plan_of(
        &of_devices(&[fuse(), entry("/dev//x", LinuxDeviceType::C, 1, 3)]),
        &AlreadyPlugged::default(),
    );
    let plan = plan.unwrap();
    let all: Vec<_> = plan.devices().iter().map(|(entry, _)| entry.path().display().to_string()).collect();
    assert_eq!(all, ["/dev/fuse", "/dev/x"]);
    assert_eq!(
        plan_of(&of_devices(&[fuse(), fuse()]), &AlreadyPlugged::default()).unwrap_err(),
        "device /dev/fuse: already exists"
    );
    let already = AlreadyPlugged { entries: vec![&plan.entries[0]], ..AlreadyPlugged::default() };
    assert_eq!(plan_of(&of_devices(&[fuse()]), &already).unwrap_err(), "device /dev/fuse: already exists");
    let other = entry("/dev/fuse", LinuxDeviceType::C, 1, 5);
    assert_eq!(plan_of(&of_devices(&[other]), &already).unwrap_err(), "device /dev/fuse: already exists");
    for (bad, word) in [
        (entry("/", LinuxDeviceType::C, 1, 3), "device /: "),
        (entry("x", LinuxDeviceType::C, 1, 3), "device x: "),
        (entry("/dev/kvm", LinuxDeviceType::C, 10, 232), "device /dev/kvm: "),
        (entry("/dev/none", LinuxDeviceType::B, 4000, 1), "device /dev/none: "),
        (entry("/dev/pipe", LinuxDeviceType::P, 0, 0), "device /dev/pipe: type \"p\""),
    ] {
        let error = plan_of(&of_devices(&[bad]), &AlreadyPlugged::default()).unwrap_err();
        assert!(error.starts_with(word), "{error}");
    }
}

#[test]
fn a_request_with_a_word_nobody_knows_is_refused() {
    let plug: PlugOptions = serde_json::from_str(r#"{"interfaces": ["eth1"]}"#).unwrap();
    assert_eq!((plug.interfaces.len(), plug.volumes.len()), (1, 0));
    assert!(serde_json::from_str::<PlugOptions>(r#"{"disks": []}"#).is_err());
    let volume = r#"{"volumes": [{"source": "/a", "destination": "/b", "size": 1}]}"#;
    assert!(serde_json::from_str::<PlugOptions>(volume).is_err());
    let functions = r#"{"functions": [["0000:00:03.0", "user-space"]], "cdiDevices": ["v.com/c=1"]}"#;
    let plug: PlugOptions = serde_json::from_str(functions).unwrap();
    assert_eq!(serde_json::from_str::<PlugOptions>(&serde_json::to_string(&plug).unwrap()).unwrap(), plug);
    assert!(serde_json::from_str::<PlugOptions>(r#"{"cdiDevices": ["nonsense"]}"#).is_err());
}

#[test]
fn what_two_devices_of_a_vendor_need_goes_with_the_last() {
    let disk = |path: &str| entry(path, LinuxDeviceType::B, 7, 0);
    let claim = |name: &str, path: &str| (name.parse().unwrap(), ClaimedItem::Entry(path.into()));
    let mut already = Plugged {
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
        let unplug = UnplugOptions { devices: vec![word.parse().unwrap()], ..UnplugOptions::default() };
        let gone = already.select(unplug).map(|selected| already.split_off(&selected))?;
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
    let already = || Plugged {
        devices: vec![plugged(group(), Some("00:03.0")), plugged(group(), Some("00:03.1"))],
        ..Plugged::default()
    };
    let unplug = |word: &str| {
        let mut already = already();
        let unplug = UnplugOptions { devices: vec![word.parse().unwrap()], ..UnplugOptions::default() };
        let selected = already.select(unplug)?;
        let gone = already.split_off(&selected).devices.into_iter();
        Ok::<_, String>(gone.map(|device| device.address.unwrap().to_string()).collect::<Vec<_>>())
    };
    assert_eq!(unplug("pci:00:03.1").unwrap(), ["0000:00:03.1"]);
    assert_eq!(unplug("/dev/vfio/12").unwrap(), ["0000:00:03.0", "0000:00:03.1"]);
    assert_eq!(unplug("pci:00:03.2"), Err("device pci:0000:00:03.2".to_owned()));
}
