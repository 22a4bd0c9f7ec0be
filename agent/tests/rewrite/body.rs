//! Any device lists and any devices, as the fuzz target and the tests run them.
#![expect(clippy::unwrap_used, reason = "test support: a failure here is a failed test")]

use std::path::PathBuf;

use arbitrary::{Arbitrary, Unstructured};
use kiai_agent::device::AssignedDevice;
use kiai_agent::device::DeviceKind;
use kiai_agent::device::Identity;
use kiai_agent::device::Node;
use kiai_agent::device::Nodes;
use kiai_agent::device::rewrite;
use kiai_agent::device::rule;
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
    /// The second of a function's nodes; no function without.
    function: Option<u8>,
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

/// Runs one rewrite. It is right or an error whatever the order of the devices; every entry becomes nodes of the device
/// assigned for it; and no rule names a device that the container has not got.
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
    assert_eq!(rewritten, backwards, "the order of devices matters");
    let here: Vec<Identity> = devices.iter().flat_map(nodes).map(|node| node.identity()).collect();
    let old = entries(&spec);
    for new in entries(&rewritten) {
        let assigned = here
            .iter()
            .any(|node| (i64::from(node.major), i64::from(node.minor)) == (new.major(), new.minor()));
        assert!(assigned || old.contains(&new), "a number nobody has: {new:?}");
    }
    for rule in rule::Rule::parse_all(&rules(&rewritten)).unwrap() {
        let (Some(kind), Some(major), Some(minor)) = (rule.kind, rule.major, rule.minor) else { continue };
        let standard = kind == DeviceKind::Character && matches!(major, 1 | 5 | 10 | 136);
        let named = Identity { kind, major, minor };
        assert!(standard || here.contains(&named), "{rule}");
    }
}

fn nodes(device: &AssignedDevice) -> Vec<&Node> {
    match &device.nodes {
        Nodes::Disk(node) => vec![node],
        Nodes::Function { own, shared, .. } => own.iter().chain(shared).collect(),
    }
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

    fn device(&self, device: &Device) -> AssignedDevice {
        let served =
            device.entry.and_then(|entry| self.entries.iter().take(MOST).nth(usize::from(entry % 16)));
        let block = served.map_or(device.block, |entry| matches!(entry.kind, Kind::Block));
        let kind = if block { DeviceKind::Block } else { DeviceKind::Character };
        let unsigned = |(major, minor): (i64, i64)| (number(major), number(minor));
        let (major, minor) = unsigned(served.map_or(device.host, |entry| entry.number).pair());
        let host = Identity { kind, major, minor };
        let (major, minor) = unsigned(device.guest.pair());
        let node = |path: &str| Node { path: path.into(), kind, major, minor };
        let nodes = match device.function {
            None => Nodes::Disk(node("/dev/guest")),
            Some(second) => Nodes::Function {
                host_address: String::new(),
                guest_address: None,
                own: vec![node("/dev/guest"), Node { path: path(second), minor: second.into(), ..node("") }],
                shared: (second % 2 == 0).then(|| node("/dev/shared")),
            },
        };
        let entry = path(served.map_or(device.path, |entry| entry.path));
        AssignedDevice { entry, host, pci_path: String::new(), nodes }
    }
}

fn number(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(7)
}
