//! Tables of whole specs before and after, and what holds of any spec and any devices.

use oci_spec::runtime::LinuxBuilder;
use oci_spec::runtime::LinuxDeviceBuilder;
use oci_spec::runtime::LinuxDeviceType;
use oci_spec::runtime::LinuxResourcesBuilder;
use oci_spec::runtime::SpecBuilder;

use super::*;
use crate::device::DeviceKind;
use crate::device::Node;
use crate::device::Nodes;

mod properties;

/// An entry: path, type, major, minor.
type Entry = (&'static str, char, i64, i64);
/// A rule: type, major, minor, access; it denies when the access begins with `!`, and -1 is a wildcard.
type RuleRow = (char, i64, i64, &'static str);

fn typ(letter: char) -> LinuxDeviceType {
    match letter {
        'a' => LinuxDeviceType::A,
        'b' => LinuxDeviceType::B,
        'c' => LinuxDeviceType::C,
        'p' => LinuxDeviceType::P,
        'u' => LinuxDeviceType::U,
        other => panic!("{other} is no type"),
    }
}

fn kind(letter: char) -> DeviceKind {
    if letter == 'b' { DeviceKind::Block } else { DeviceKind::Character }
}

fn spec(entries: &[Entry], rules: Option<&[RuleRow]>) -> Spec {
    let entries: Vec<_> = entries
        .iter()
        .map(|&(path, letter, major, minor)| {
            LinuxDeviceBuilder::default()
                .path(path)
                .typ(typ(letter))
                .major(major)
                .minor(minor)
                .build()
                .unwrap()
        })
        .collect();
    let mut linux = LinuxBuilder::default().devices(entries).build().unwrap();
    linux.set_resources(rules.map(|rules| {
        let rules: Vec<_> = rules.iter().map(rule_row).collect();
        LinuxResourcesBuilder::default().devices(rules).build().unwrap()
    }));
    SpecBuilder::default().linux(linux).build().unwrap()
}

fn rule_row(&(letter, major, minor, access): &RuleRow) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(!access.starts_with('!')).set_typ(Some(typ(letter)));
    rule.set_major((major >= 0).then_some(major)).set_minor((minor >= 0).then_some(minor));
    rule.set_access(Some(access.trim_start_matches('!').into()));
    rule
}

fn number(kind: DeviceKind, (major, minor): (u32, u32)) -> Identity {
    Identity { kind, major, minor }
}

fn host((_, letter, major, minor): Entry) -> Identity {
    number(kind(letter), (u32::try_from(major).unwrap(), u32::try_from(minor).unwrap()))
}

/// A disk: the entry it serves, and its number in the guest.
fn device(entry: Entry, guest: (u32, u32)) -> AssignedDevice {
    let node = Node { path: "/dev/x".into(), kind: kind(entry.1), major: guest.0, minor: guest.1 };
    AssignedDevice {
        entry: entry.0.into(),
        host: host(entry),
        pci_path: String::new(),
        nodes: Nodes::Disk(node),
    }
}

/// A function of a VFIO group: the entry it serves, its nodes, and whether `/dev/vfio/vfio` is one more.
fn function(entry: Entry, nodes: &[(&str, char, u32, u32)], shared: bool) -> AssignedDevice {
    let node = |&(path, letter, major, minor): &(&str, char, u32, u32)| Node {
        path: path.into(),
        kind: kind(letter),
        major,
        minor,
    };
    let nodes = Nodes::Function {
        host_address: String::new(),
        guest_address: None,
        own: nodes.iter().map(node).collect(),
        shared: shared.then(|| node(&("/dev/vfio/vfio", 'c', 10, 196))),
    };
    AssignedDevice { entry: entry.0.into(), host: host(entry), pci_path: String::new(), nodes }
}

fn check(
    before: (&[Entry], Option<&[RuleRow]>),
    devices: &[AssignedDevice],
    after: (&[Entry], Option<&[RuleRow]>),
) {
    assert_eq!(rewrite(&spec(before.0, before.1), devices).unwrap(), spec(after.0, after.1));
}

fn refusal(entries: &[Entry], devices: &[AssignedDevice]) -> RewriteError {
    let spec = spec(entries, Some(&[('b', 8, 0, "rwm")]));
    let before = spec.clone();
    let error = rewrite(&spec, devices).unwrap_err();
    assert_eq!(spec, before);
    error
}

const SDA: Entry = ("/dev/sda", 'b', 8, 0);
const SDB: Entry = ("/dev/sdb", 'b', 8, 16);

#[test]
fn an_entry_and_its_rule_follow_their_device() {
    check(
        (&[SDA], Some(&[('a', -1, -1, "!rwm"), ('b', 8, 0, "rw")])),
        &[device(SDA, (254, 0))],
        (&[("/dev/sda", 'b', 254, 0)], Some(&[('a', -1, -1, "!rwm"), ('b', 254, 0, "rw")])),
    );
}

#[test]
fn a_chain_of_numbers_is_followed_one_step_only() {
    let (a, b) = (("/dev/a", 'c', 1, 3), ("/dev/b", 'c', 1, 5));
    let after: (&[Entry], Option<&[RuleRow]>) =
        (&[("/dev/a", 'c', 1, 5), ("/dev/b", 'c', 1, 7)], Some(&[('c', 1, 5, "rwm"), ('c', 1, 7, "rwm")]));
    let (a_to_b, b_on) = (device(a, (1, 5)), device(b, (1, 7)));
    let before: (&[Entry], Option<&[RuleRow]>) = (&[a, b], Some(&[('c', 1, 3, "rwm"), ('c', 1, 5, "rwm")]));
    check(before, &[a_to_b.clone(), b_on.clone()], after);
    check(before, &[b_on, a_to_b], after);
}

#[test]
fn two_devices_can_swap_their_numbers() {
    let before: (&[Entry], Option<&[RuleRow]>) =
        (&[SDA, SDB], Some(&[('b', 8, 0, "r"), ('b', 8, 16, "rwm")]));
    let after: (&[Entry], Option<&[RuleRow]>) = (
        &[("/dev/sda", 'b', 8, 16), ("/dev/sdb", 'b', 8, 0)],
        Some(&[('b', 8, 16, "r"), ('b', 8, 0, "rwm")]),
    );
    let (a, b) = (device(SDA, (8, 16)), device(SDB, (8, 0)));
    check(before, &[a.clone(), b.clone()], after);
    check(before, &[b, a], after);
}

#[test]
fn a_character_device_is_not_taken_for_a_block_device_of_its_number() {
    let (c, b) = (("/dev/c", 'c', 99, 99), ("/dev/b", 'b', 99, 99));
    check(
        (&[c, b], Some(&[('c', 99, 99, "rwm"), ('b', 99, 99, "rwm")])),
        &[device(c, (1, 3)), device(b, (99, 99))],
        (&[("/dev/c", 'c', 1, 3), b], Some(&[('c', 1, 3, "rwm"), ('b', 99, 99, "rwm")])),
    );
}

const GROUP: Entry = ("/dev/vfio/12", 'c', 243, 4);
const OTHER_GROUP: Entry = ("/dev/vfio/13", 'c', 243, 5);

/// What `rules` let a container do with devices of the guest, whose entries are `entries`.
fn access(
    entries: &[Entry],
    rules: &[RuleRow],
    devices: &[AssignedDevice],
    asked: &[Identity],
) -> Vec<String> {
    let after = rewrite(&spec(entries, Some(rules)), devices).unwrap();
    let rules = Rule::parse_all(super::rules(&after)).unwrap();
    asked.iter().map(|device| granted(&rules, *device).to_string()).collect()
}

fn block(major: u32, minor: u32) -> Identity {
    number(DeviceKind::Block, (major, minor))
}

fn character(major: u32, minor: u32) -> Identity {
    number(DeviceKind::Character, (major, minor))
}

#[test]
fn an_entry_of_a_group_becomes_the_nodes_of_its_functions() {
    let disk = [("/dev/nvme0", 'c', 240, 0), ("/dev/nvme0n1", 'b', 259, 0)];
    let first = function(GROUP, &disk, false);
    let second = function(GROUP, &[("/dev/vfio/noiommu-0", 'c', 242, 0)], true);
    let none = function(OTHER_GROUP, &[], false);
    let devices = [second.clone(), none, first];
    let before = spec(&[SDA, GROUP, OTHER_GROUP], Some(&[('c', 243, 4, "rwm"), ('c', 243, 5, "rwm")]));
    let after = rewrite(&before, &[&devices[..], &[device(SDA, (254, 0))]].concat()).unwrap();
    let shown: Vec<_> = entries(&after)
        .iter()
        .map(|row| format!("{} {}:{}", row.path().display(), row.major(), row.minor()))
        .collect();
    assert_eq!(
        shown,
        [
            "/dev/sda 254:0",
            "/dev/nvme0 240:0",
            "/dev/nvme0n1 259:0",
            "/dev/vfio/noiommu-0 242:0",
            "/dev/vfio/vfio 10:196",
        ]
    );
    let rules: Vec<_> = rules(&after).iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["c 240:0 rwm", "b 259:0 rwm", "c 242:0 rwm", "c 10:196 rwm", "b 254:0 rwm"][..4]);

    // Its path may be another entry's already.
    let taken = ("/dev/vfio/noiommu-0", 'b', 8, 0);
    let error = refusal(&[taken, GROUP], &[device(taken, (254, 0)), second]);
    assert_eq!(error, RewriteError::TwoDevices("/dev/vfio/noiommu-0".into()));
}

#[test]
fn a_device_without_a_rule_gets_nothing_because_the_rule_of_a_group_went_elsewhere() {
    let group = function(GROUP, &[("/dev/vfio/noiommu-0", 'c', 242, 0)], true);
    let asked = [character(242, 0), block(254, 16)];
    let devices = [group, device(SDA, (254, 16))];
    assert_eq!(access(&[GROUP, SDA], &[('c', 243, 4, "rwm")], &devices, &asked), ["rwm", ""]);
}

#[test]
fn a_group_gets_what_its_rules_allow_and_no_more() {
    let group = [function(GROUP, &[("/dev/vfio/noiommu-0", 'c', 242, 0)], true)];
    let asked = [character(242, 0), character(10, 196)];
    let may = |rules: &[RuleRow]| access(&[GROUP], rules, &group, &asked);
    assert_eq!(may(&[('c', 243, 4, "r")]), ["r", "r"]);
    assert_eq!(may(&[('a', -1, -1, "!rwm")]), ["", ""]);
    assert_eq!(may(&[('c', 243, 4, "rwm"), ('c', 243, -1, "!w")]), ["rm", "rm"]);
    // By a rule for the driver.
    assert_eq!(may(&[('a', -1, -1, "!rwm"), ('c', 243, -1, "rw")]), ["rw", "rw"]);
    // Where the spec lets it be used by itself.
    assert_eq!(may(&[('c', 243, 4, "r"), ('c', 10, 196, "rw")]), ["r", "rw"]);
}

#[test]
fn what_every_group_needs_is_allowed_with_any_of_them() {
    let group = function(GROUP, &[("/dev/vfio/noiommu-0", 'c', 242, 0)], true);
    let other = function(OTHER_GROUP, &[("/dev/vfio/noiommu-1", 'c', 242, 1)], true);
    let shared = [character(10, 196)];
    let rules: [RuleRow; 3] = [('c', 10, 196, "rwm"), ('a', -1, -1, "!rwm"), ('c', 243, 4, "rwm")];
    assert_eq!(access(&[GROUP], &rules, std::slice::from_ref(&group), &shared), ["rwm"]);
    let rules: [RuleRow; 2] = [('c', 243, 4, "rwm"), ('c', 243, 5, "!rwm")];
    assert_eq!(access(&[GROUP, OTHER_GROUP], &rules, &[group, other], &shared), ["rwm"]);
}

#[test]
fn a_rule_with_a_wildcard_is_for_what_it_fits_on_the_host() {
    check(
        (&[SDA], Some(&[('a', -1, -1, "!rwm"), ('b', 8, -1, "rw"), ('b', -1, 0, "m")])),
        &[device(SDA, (254, 0))],
        (
            &[("/dev/sda", 'b', 254, 0)],
            Some(&[('a', -1, -1, "!rwm"), ('b', 254, 0, "rw"), ('b', 254, 0, "m")]),
        ),
    );
    // A driver's rule does not open what has its number here: a neighbour's disk.
    let neighbours = [block(254, 0), block(254, 16), block(254, 32), block(8, 16)];
    for wide in [('b', 254, -1, "rwm"), ('b', -1, -1, "rwm"), ('b', -1, 16, "rwm"), ('b', 8, -1, "rwm")] {
        let may = access(&[SDA], &[wide], &[device(SDA, (254, 0))], &neighbours);
        assert_eq!(may[1..], ["", "", ""], "{wide:?}");
    }
    // Of standard devices it does what it did on the host, and no more: 1:1 is the guest's memory.
    let standard = [character(1, 3), character(1, 9), character(1, 1), character(136, 7), character(4, 64)];
    let may = |rule: RuleRow| access(&[], &[rule], &[], &standard);
    assert_eq!(may(('c', 1, -1, "rw")), ["rw", "rw", "", "", ""]);
    assert_eq!(may(('c', 136, -1, "rw")), ["", "", "", "rw", ""]);
    assert_eq!(may(('c', -1, -1, "r")), ["r", "r", "", "r", ""]);
}

#[test]
fn a_rule_for_every_device_stays_and_so_does_one_that_gives_no_use() {
    for rule in [
        ('a', -1, -1, "rwm"),
        ('a', -1, -1, "!rwm"),
        ('b', -1, -1, "!w"),
        ('c', -1, -1, "m"),
        ('b', -1, -1, "m"),
    ] {
        check((&[], Some(&[rule])), &[], (&[], Some(&[rule])));
    }
    check(
        (&[SDA], Some(&[('a', -1, -1, "rwm")])),
        &[device(SDA, (254, 0))],
        (&[("/dev/sda", 'b', 254, 0)], Some(&[('a', -1, -1, "rwm")])),
    );
}

#[test]
fn a_rule_that_allows_a_device_nobody_assigned_is_refused_by_name() {
    let neighbours = spec(&[SDA], Some(&[('b', 8, 0, "rwm"), ('b', 254, 16, "rw")]));
    let error = rewrite(&neighbours, &[device(SDA, (254, 0))]).unwrap_err();
    assert!(error.to_string().contains("allow b 254:16 rw"), "{error}");
    for row in [('a', 8, 16, "r"), ('c', 8, 0, "r"), ('c', 1, 1, "r")] {
        let error = rewrite(&spec(&[SDA], Some(&[row])), &[device(SDA, (254, 0))]).unwrap_err();
        assert!(matches!(error, RewriteError::RuleNotAssigned(_)), "{error}");
    }
    // One that denies has nothing to deny here.
    check(
        (&[SDA], Some(&[('b', 8, 0, "rw"), ('b', 254, 0, "!rwm")])),
        &[device(SDA, (254, 0))],
        (&[("/dev/sda", 'b', 254, 0)], Some(&[('b', 254, 0, "rw")])),
    );
}

#[test]
fn a_device_denied_on_the_host_is_denied_in_the_guest() {
    check(
        (&[SDA], Some(&[('a', -1, -1, "!rwm"), ('b', 254, -1, "rwm")])),
        &[device(SDA, (254, 0))],
        (&[("/dev/sda", 'b', 254, 0)], Some(&[('a', -1, -1, "!rwm")])),
    );
}

#[test]
fn without_rules_the_device_is_allowed() {
    let null = ("/dev/null", 'c', 1, 3);
    let after: (&[Entry], Option<&[RuleRow]>) = (&[("/dev/null", 'c', 1, 5)], Some(&[('c', 1, 5, "rwm")]));
    check((&[null], None), &[device(null, (1, 5))], after);
    check((&[null], Some(&[])), &[device(null, (1, 5))], after);
}

#[test]
fn the_rule_of_one_device_is_not_changed_for_another() {
    // The guest's number of A is the host's number of B.
    let (a, b) = (("/dev/a", 'b', 8, 0), ("/dev/b", 'b', 254, 0));
    check(
        (&[a, b], Some(&[('b', -1, 0, "r")])),
        &[device(a, (254, 0)), device(b, (254, 16))],
        (
            &[("/dev/a", 'b', 254, 0), ("/dev/b", 'b', 254, 16)],
            Some(&[('b', 254, 0, "r"), ('b', 254, 16, "r")]),
        ),
    );
}

#[test]
fn two_paths_of_one_device_are_fine_if_they_stay_one_device() {
    let (a, b) = (("/dev/a", 'c', 1, 3), ("/dev/b", 'c', 1, 3));
    check(
        (&[a, b], Some(&[('c', 1, 3, "rwm")])),
        &[device(a, (1, 5)), device(b, (1, 5))],
        (&[("/dev/a", 'c', 1, 5), ("/dev/b", 'c', 1, 5)], Some(&[('c', 1, 5, "rwm")])),
    );
    let split = RewriteError::Split { first: "/dev/a".into(), second: "/dev/b".into() };
    assert_eq!(refusal(&[a, b], &[device(a, (1, 5)), device(b, (1, 7))]), split);
    assert_eq!(refusal(&[a, b], &[device(b, (1, 7)), device(a, (1, 5))]), split);
}

#[test]
fn an_alias_that_no_device_names_is_the_device_it_was_on_the_host() {
    let (a, b) = (("/dev/a", 'b', 8, 0), ("/dev/b", 'b', 8, 0));
    check(
        (&[a, b], Some(&[('b', 8, 0, "rwm")])),
        &[device(a, (254, 0))],
        (&[("/dev/a", 'b', 254, 0), ("/dev/b", 'b', 254, 0)], Some(&[('b', 254, 0, "rwm")])),
    );
}

#[test]
fn an_entry_that_is_there_twice_is_made_once() {
    let after: (&[Entry], Option<&[RuleRow]>) = (&[("/dev/sda", 'b', 254, 0)], Some(&[('b', 254, 0, "rwm")]));
    let sda = device(SDA, (254, 0));
    check((&[SDA, SDA], Some(&[('b', 8, 0, "rwm")])), std::slice::from_ref(&sda), after);
    check((&[SDA, SDA], Some(&[('b', 8, 0, "rwm")])), &[sda.clone(), sda.clone()], after);
    let other = ("/dev/sda", 'b', 8, 16);
    assert!(matches!(refusal(&[SDA, other], &[sda]), RewriteError::OtherIdentity { found: Some(_), .. }));
}

#[test]
fn an_entry_that_nothing_serves_is_refused_by_name() {
    // Its number may be a neighbour's here.
    for entry in [SDB, ("/dev/kmsg", 'c', 1, 11), ("/dev/null", 'b', 1, 3), ("/dev/all", 'a', 8, 0)] {
        let error = refusal(&[SDA, entry], &[device(SDA, (254, 0))]);
        assert!(matches!(error, RewriteError::NotAssigned { .. }), "{error}");
        assert!(error.to_string().contains(entry.0), "{error}");
    }
    let native: [Entry; 3] =
        [("/dev/nothing", 'c', 1, 3), ("/dev/fuse", 'u', 10, 229), ("/dev/pipe", 'p', 0, 0)];
    check((&native, Some(&[('a', -1, -1, "!rwm")])), &[], (&native, Some(&[('a', -1, -1, "!rwm")])));
}

#[test]
fn in_a_user_namespace_a_node_is_bound_from_where_the_guest_has_it() {
    // libcontainer would bind what has the entry's path in the guest, which may be a neighbour's.
    let mut json = serde_json::to_value(spec(&[SDA, ("/dev/fuse", 'c', 10, 229)], None)).unwrap();
    json["linux"]["namespaces"] = serde_json::json!([{"type": "user"}]);
    let mut disk = device(SDA, (254, 0));
    disk.nodes = Nodes::Disk(Node { path: "/dev/vdb".into(), kind: DeviceKind::Block, major: 254, minor: 0 });
    let after = rewrite(&serde_json::from_value(json).unwrap(), &[disk]).unwrap();
    let rows: Vec<_> = entries(&after).iter().map(|entry| entry.path().clone()).collect();
    assert_eq!(rows, [PathBuf::from("/dev/fuse")]);
    let mount = after.mounts().as_ref().unwrap().last().unwrap();
    assert_eq!(mount.destination().to_str(), Some("/dev/sda"));
    assert_eq!(mount.source().as_ref().unwrap().to_str(), Some("/dev/vdb"));
    assert_eq!(mount.options().clone().unwrap(), ["bind"]);
}

#[test]
fn a_device_without_an_entry_is_refused_by_name() {
    let absent = device(("/dev/x", 'b', 8, 0), (254, 0));
    let named = RewriteError::NoEntry("/dev/x".into());
    assert_eq!(refusal(&[("/dev/y", 'b', 8, 0)], std::slice::from_ref(&absent)), named);
    assert_eq!(refusal(&[], std::slice::from_ref(&absent)), named);
    for part in ["devices", "linux"] {
        let mut without = serde_json::to_value(spec(&[], None)).unwrap();
        let parent = if part == "linux" { &mut without } else { &mut without["linux"] };
        parent.as_object_mut().unwrap().remove(part);
        let without: Spec = serde_json::from_value(without).unwrap();
        assert_eq!(rewrite(&without, std::slice::from_ref(&absent)).unwrap_err(), named);
        assert_eq!(rewrite(&without, &[]).unwrap(), without);
    }
}

#[test]
fn two_devices_for_one_entry_are_refused() {
    let error = refusal(&[SDA], &[device(SDA, (254, 0)), device(SDA, (254, 16))]);
    assert_eq!(error, RewriteError::Split { first: "/dev/sda".into(), second: "/dev/sda".into() });
}

#[test]
fn an_entry_of_another_number_or_type_is_refused() {
    let sda = device(SDA, (254, 0));
    for entry in [("/dev/sda", 'b', 8, 16), ("/dev/sda", 'c', 8, 0), ("/dev/sda", 'p', 8, 0)] {
        let error = refusal(&[entry], std::slice::from_ref(&sda));
        assert!(matches!(error, RewriteError::OtherIdentity { .. }), "{error}");
        assert!(error.to_string().contains("/dev/sda"), "{error}");
    }
    let mut mixed = sda;
    mixed.nodes = device(("/dev/sda", 'c', 8, 0), (254, 0)).nodes;
    assert_eq!(refusal(&[SDA], &[mixed]), RewriteError::OtherKind("/dev/sda".into()));
}

#[test]
fn a_rule_nobody_can_follow_is_refused() {
    let spec = spec(&[SDA], Some(&[('b', 8, 0, "rwx")]));
    let error = rewrite(&spec, &[device(SDA, (254, 0))]).unwrap_err();
    assert_eq!(error, RewriteError::Rule(RuleError::Access("b 8:0 rwx".into())));
}

#[test]
fn an_unbuffered_character_device_is_a_character_device() {
    let tty = ("/dev/tty9", 'u', 4, 9);
    check(
        (&[tty], Some(&[('u', 4, 9, "rwm")])),
        &[device(tty, (4, 1))],
        (&[("/dev/tty9", 'u', 4, 1)], Some(&[('c', 4, 1, "rwm")])),
    );
}
