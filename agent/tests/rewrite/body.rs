//! Any device lists and any devices, as the fuzz target and the tests run them.
#![expect(clippy::unwrap_used, reason = "test support: a failure here is a failed test")]

use std::path::PathBuf;

use arbitrary::{Arbitrary, Unstructured};
use kiai_agent::device::{DeviceKind, LocatedDevice, Node, rewrite};
use oci_spec::runtime::{
    LinuxBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, LinuxResourcesBuilder, Spec, SpecBuilder,
};

/// Entries, rules and devices of one run.
const MOST: usize = 16;

#[derive(Debug, Arbitrary)]
struct Input {
    entries: Vec<Entry>,
    rules: Option<Vec<Rule>>,
    devices: Vec<Device>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Entry {
    path: u8,
    kind: Kind,
    number: Number,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Rule {
    kind: Kind,
    number: Option<Number>,
    allow: bool,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Device {
    /// Mostly what serves one of the entries; otherwise anything.
    entry: Option<u8>,
    path: u8,
    block: bool,
    host: Number,
    guest: Number,
    guest_path: Option<u8>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Kind {
    All,
    Block,
    Character,
    Unbuffered,
    Fifo,
}

/// Few, so that the host's and the guest's collide.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Number {
    Small(u8),
    Any(i64, i64),
}

impl Number {
    fn pair(self) -> (i64, i64) {
        match self {
            Self::Small(n) => (1 + i64::from(n % 3), i64::from(n / 3 % 3)),
            Self::Any(major, minor) => (major, minor),
        }
    }
}

impl Kind {
    fn typ(self) -> LinuxDeviceType {
        match self {
            Self::All => LinuxDeviceType::A,
            Self::Block => LinuxDeviceType::B,
            Self::Character => LinuxDeviceType::C,
            Self::Unbuffered => LinuxDeviceType::U,
            Self::Fifo => LinuxDeviceType::P,
        }
    }
}

/// Runs one rewrite. It is right or an error whatever the order of the devices, keeps what no device names,
/// gives every entry that one names the guest's numbers, loses no rule, and changes nothing when there is no
/// device.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    let spec = input.spec();
    let mut devices: Vec<_> = input.devices.iter().take(MOST).map(|device| input.device(device)).collect();
    let before = spec.clone();
    let rewritten = rewrite(&spec, &devices);
    assert_eq!(spec, before, "the input is only looked at");
    devices.reverse();
    let backwards = rewrite(&spec, &devices);
    assert_eq!(rewritten.is_ok(), backwards.is_ok(), "{rewritten:?} and {backwards:?}");
    let (Ok(rewritten), Ok(backwards)) = (rewritten, backwards) else { return };
    assert_eq!(entries(&rewritten), entries(&backwards), "the order of devices matters");
    assert_eq!(rewrite(&rewritten, &[]).as_ref(), Ok(&rewritten), "no device, no change");
    let (old, new) = (entries(&spec), entries(&rewritten));
    assert_eq!(old.len(), new.len());
    for (old, new) in old.iter().zip(&new) {
        match devices.iter().find(|device| device.container_path == *old.path()) {
            None => assert_eq!(old, new, "an entry that no device names"),
            Some(device) => {
                assert_eq!((new.major(), new.minor()), (device.node.major, device.node.minor));
                assert_eq!(new.path(), device.guest_path.as_ref().unwrap_or(old.path()));
                assert_eq!(new.typ(), old.typ());
            }
        }
    }
    assert!(rules(&rewritten).len() >= rules(&spec).len(), "a rule is gone");
}

fn entries(spec: &Spec) -> Vec<LinuxDevice> {
    spec.linux().as_ref().and_then(|linux| linux.devices().clone()).unwrap_or_default()
}

fn rules(spec: &Spec) -> Vec<LinuxDeviceCgroup> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    resources.and_then(|resources| resources.devices().clone()).unwrap_or_default()
}

fn path(n: u8) -> PathBuf {
    format!("/dev/{}", n % 8).into()
}

impl Input {
    fn spec(&self) -> Spec {
        let entry = |entry: &Entry| {
            let (major, minor) = entry.number.pair();
            let builder = LinuxDeviceBuilder::default().path(path(entry.path)).typ(entry.kind.typ());
            builder.major(major).minor(minor).build().unwrap()
        };
        let rule = |rule: &Rule| {
            let mut made =
                LinuxDeviceCgroupBuilder::default().allow(rule.allow).typ(rule.kind.typ()).build().unwrap();
            let number = rule.number.map(Number::pair);
            made.set_major(number.map(|n| n.0)).set_minor(number.map(|n| n.1)).set_access(Some("rwm".into()));
            made
        };
        let entries: Vec<_> = self.entries.iter().take(MOST).map(entry).collect();
        let mut linux = LinuxBuilder::default().devices(entries).build().unwrap();
        linux.set_resources(self.rules.as_ref().map(|rules| {
            let rules: Vec<_> = rules.iter().take(MOST).map(rule).collect();
            LinuxResourcesBuilder::default().devices(rules).build().unwrap()
        }));
        SpecBuilder::default().linux(linux).build().unwrap()
    }

    fn device(&self, device: &Device) -> LocatedDevice {
        let served =
            device.entry.and_then(|entry| self.entries.iter().take(MOST).nth(usize::from(entry % 16)));
        let block = served.map_or(device.block, |entry| matches!(entry.kind, Kind::Block));
        let kind = if block { DeviceKind::Block } else { DeviceKind::Character };
        let (host_major, host_minor) = served.map_or(device.host, |entry| entry.number).pair();
        let (major, minor) = device.guest.pair();
        LocatedDevice {
            container_path: path(served.map_or(device.path, |entry| entry.path)),
            kind,
            host_major,
            host_minor,
            node: Node { path: "/dev/guest".into(), kind, major, minor },
            guest_path: device.guest_path.map(path),
        }
    }
}
