//! Tables of whole specs before and after, and what holds of any spec and any devices.

use super::*;
use oci_spec::runtime::{LinuxBuilder, LinuxDeviceBuilder, LinuxResourcesBuilder, SpecBuilder};
use proptest::prelude::*;

/// An entry: path, type, major, minor.
type Entry = (&'static str, char, i64, i64);
/// A rule: type, major, minor, access; it denies when the access begins with `!`, and -1 is a wildcard.
type Row = (char, i64, i64, &'static str);

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

fn spec(entries: &[Entry], rules: Option<&[Row]>) -> Spec {
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
        let rules: Vec<_> = rules.iter().map(row).collect();
        LinuxResourcesBuilder::default().devices(rules).build().unwrap()
    }));
    SpecBuilder::default().linux(linux).build().unwrap()
}

fn row(&(letter, major, minor, access): &Row) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(!access.starts_with('!')).set_typ(Some(typ(letter)));
    rule.set_major((major >= 0).then_some(major)).set_minor((minor >= 0).then_some(minor));
    rule.set_access(Some(access.trim_start_matches('!').into()));
    rule
}

/// A device: the entry it serves, and its number in the guest.
fn device((path, letter, major, minor): Entry, guest: (i64, i64)) -> LocatedDevice {
    LocatedDevice {
        container_path: path.into(),
        kind: kind(letter),
        host_major: major,
        host_minor: minor,
        node: Node { path: "/dev/x".into(), kind: kind(letter), major: guest.0, minor: guest.1 },
        guest_path: None,
    }
}

fn check(before: (&[Entry], Option<&[Row]>), devices: &[LocatedDevice], after: (&[Entry], Option<&[Row]>)) {
    assert_eq!(rewrite(&spec(before.0, before.1), devices).unwrap(), spec(after.0, after.1));
}

fn refusal(entries: &[Entry], devices: &[LocatedDevice]) -> RewriteError {
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
    let after: (&[Entry], Option<&[Row]>) =
        (&[("/dev/a", 'c', 1, 5), ("/dev/b", 'c', 1, 7)], Some(&[('c', 1, 5, "rwm"), ('c', 1, 7, "rwm")]));
    let (a_to_b, b_on) = (device(a, (1, 5)), device(b, (1, 7)));
    let before: (&[Entry], Option<&[Row]>) = (&[a, b], Some(&[('c', 1, 3, "rwm"), ('c', 1, 5, "rwm")]));
    check(before, &[a_to_b.clone(), b_on.clone()], after);
    check(before, &[b_on, a_to_b], after);
}

#[test]
fn two_devices_can_swap_their_numbers() {
    let before: (&[Entry], Option<&[Row]>) = (&[SDA, SDB], Some(&[('b', 8, 0, "r"), ('b', 8, 16, "rwm")]));
    let after: (&[Entry], Option<&[Row]>) = (
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
        &[device(c, (1, 3))],
        (&[("/dev/c", 'c', 1, 3), b], Some(&[('c', 1, 3, "rwm"), ('b', 99, 99, "rwm")])),
    );
}

#[test]
fn a_path_can_change_with_its_number() {
    let vfio = ("/dev/vfio/12", 'c', 243, 4);
    let mut group = device(vfio, (242, 0));
    group.guest_path = Some("/dev/vfio/0".into());
    check(
        (&[vfio], Some(&[('c', 243, 4, "rwm")])),
        &[group],
        (&[("/dev/vfio/0", 'c', 242, 0)], Some(&[('c', 242, 0, "rwm")])),
    );
}

#[test]
fn paths_can_be_exchanged_but_not_shared() {
    let (first, second) = (("/dev/vfio/0", 'c', 243, 0), ("/dev/vfio/1", 'c', 243, 1));
    let mut up = device(first, (242, 1));
    up.guest_path = Some("/dev/vfio/1".into());
    let mut down = device(second, (242, 0));
    down.guest_path = Some("/dev/vfio/0".into());
    check(
        (&[first, second], None),
        &[up.clone(), down],
        (
            &[("/dev/vfio/1", 'c', 242, 1), ("/dev/vfio/0", 'c', 242, 0)],
            Some(&[('c', 242, 0, "rwm"), ('c', 242, 1, "rwm")]),
        ),
    );
    assert_eq!(refusal(&[first, second], &[up]), RewriteError::TwoAtPath("/dev/vfio/1".into()));
}

#[test]
fn rules_with_a_wildcard_keep_it_and_the_guests_number_is_allowed_what_they_allowed() {
    let wide: Row = ('b', 8, -1, "rw");
    check(
        (&[SDA], Some(&[('a', -1, -1, "!rwm"), wide, ('b', -1, 0, "m")])),
        &[device(SDA, (254, 0))],
        (
            &[("/dev/sda", 'b', 254, 0)],
            Some(&[('a', -1, -1, "!rwm"), wide, ('b', -1, 0, "m"), ('b', 254, 0, "rw")]),
        ),
    );
    // A rule that fits both numbers needs no help.
    check(
        (&[SDA], Some(&[('a', -1, -1, "rwm")])),
        &[device(SDA, (254, 0))],
        (&[("/dev/sda", 'b', 254, 0)], Some(&[('a', -1, -1, "rwm")])),
    );
}

#[test]
fn a_device_denied_on_the_host_is_denied_in_the_guest() {
    check(
        (&[SDA], Some(&[('a', -1, -1, "!rwm"), ('b', 254, -1, "rwm")])),
        &[device(SDA, (254, 0))],
        (
            &[("/dev/sda", 'b', 254, 0)],
            Some(&[('a', -1, -1, "!rwm"), ('b', 254, -1, "rwm"), ('b', 254, 0, "!rwm")]),
        ),
    );
}

#[test]
fn without_rules_the_device_is_allowed() {
    let null = ("/dev/null", 'c', 1, 3);
    let after: (&[Entry], Option<&[Row]>) = (&[("/dev/null", 'c', 1, 5)], Some(&[('c', 1, 5, "rwm")]));
    check((&[null], None), &[device(null, (1, 5))], after);
    check((&[null], Some(&[])), &[device(null, (1, 5))], after);
}

#[test]
fn the_rule_appended_for_one_device_is_not_changed_for_another() {
    // The guest's number of A is the host's number of B.
    let (a, b) = (("/dev/a", 'b', 8, 0), ("/dev/b", 'b', 254, 0));
    check(
        (&[a, b], Some(&[('b', -1, 0, "r")])),
        &[device(a, (254, 8)), device(b, (254, 16))],
        (
            &[("/dev/a", 'b', 254, 8), ("/dev/b", 'b', 254, 16)],
            Some(&[('b', -1, 0, "r"), ('b', 254, 8, "r"), ('b', 254, 16, "r")]),
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
fn an_alias_that_no_device_names_stays() {
    // Nobody said what serves it, and its rule follows the device that is known.
    let (a, b) = (("/dev/a", 'b', 8, 0), ("/dev/b", 'b', 8, 0));
    check(
        (&[a, b], Some(&[('b', 8, 0, "rwm")])),
        &[device(a, (254, 0))],
        (&[("/dev/a", 'b', 254, 0), b], Some(&[('b', 254, 0, "rwm")])),
    );
}

#[test]
fn an_entry_that_is_there_twice_is_changed_twice() {
    let after = ("/dev/sda", 'b', 254, 0);
    check(
        (&[SDA, SDA], Some(&[('b', 8, 0, "rwm")])),
        &[device(SDA, (254, 0))],
        (&[after, after], Some(&[('b', 254, 0, "rwm")])),
    );
    let other = ("/dev/sda", 'b', 8, 16);
    assert!(matches!(
        refusal(&[SDA, other], &[device(SDA, (254, 0))]),
        RewriteError::OtherIdentity { found: Some(_), .. }
    ));
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
    for other in [(254, 0), (254, 16)] {
        let error = refusal(&[SDA], &[device(SDA, (254, 0)), device(SDA, other)]);
        assert_eq!(error, RewriteError::TwoDevices("/dev/sda".into()));
    }
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
    mixed.node.kind = DeviceKind::Character;
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
        (&[("/dev/tty9", 'u', 4, 1)], Some(&[('u', 4, 1, "rwm")])),
    );
}

const PATHS: [&str; 8] =
    ["/dev/p0", "/dev/p1", "/dev/p2", "/dev/p3", "/dev/p4", "/dev/p5", "/dev/p6", "/dev/p7"];
const ACCESS: [&str; 6] = ["rwm", "r", "rw", "!w", "!rwm", "m"];

/// Entries, the rules of the spec, and the devices found for some of the entries.
#[derive(Debug, Clone)]
struct Case {
    entries: Vec<Entry>,
    rules: Vec<Row>,
    devices: Vec<LocatedDevice>,
}

impl Case {
    fn spec(&self) -> Spec {
        spec(&self.entries, Some(&self.rules))
    }
}

prop_compose! {
    /// Host and guest numbers that overlap as much as they can: chains, swaps, aliases and conflicts.
    fn cases()(
        entries in prop::collection::vec((any::<bool>(), 0i64..5, 0i64..5, any::<bool>()), 1..8),
        rules in prop::collection::vec((0usize..3, -1i64..5, 0usize..ACCESS.len(), any::<bool>()), 0..10),
    ) -> Case {
        let typed = |block| if block { 'b' } else { 'c' };
        let made: Vec<(Entry, Option<LocatedDevice>)> = entries
            .iter()
            .enumerate()
            .map(|(i, &(block, minor, guest, found))| {
                let entry = (PATHS[i], typed(block), 8, minor);
                (entry, found.then(|| device(entry, (8, guest))))
            })
            .collect();
        let rules = rules
            .iter()
            .map(|&(letter, minor, access, exact)| {
                (['a', 'b', 'c'][letter], if exact { 8 } else { -1 }, minor, ACCESS[access])
            })
            .collect();
        Case {
            entries: made.iter().map(|(entry, _)| *entry).collect(),
            rules,
            devices: made.into_iter().filter_map(|(_, device)| device).collect(),
        }
    }
}

fn entries_of(spec: &Spec) -> Vec<LinuxDevice> {
    spec.linux().as_ref().unwrap().devices().clone().unwrap_or_default()
}

fn rules_of(spec: &Spec) -> Vec<LinuxDeviceCgroup> {
    let resources = spec.linux().as_ref().unwrap().resources().clone();
    resources.and_then(|resources| resources.devices().clone()).unwrap_or_default()
}

fn entry_identity(entry: &LinuxDevice) -> Option<Identity> {
    identity(Some(entry.typ()), Some(entry.major()), Some(entry.minor()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_order_of_devices_does_not_matter(case in cases(), turn in any::<prop::sample::Index>(), back: bool) {
        let mut turned = case.devices.clone();
        if !turned.is_empty() {
            let by = turn.index(turned.len());
            turned.rotate_left(by);
        }
        if back {
            turned.reverse();
        }
        let (one, other) = (rewrite(&case.spec(), &case.devices), rewrite(&case.spec(), &turned));
        // Which of several conflicts is named may differ; that there is one may not.
        prop_assert_eq!(one.is_ok(), other.is_ok());
        if let (Ok(one), Ok(other)) = (one, other) {
            prop_assert_eq!(one, other);
        }
    }

    #[test]
    fn entries_keep_their_number_and_are_changed_once(case in cases()) {
        if let Ok(after) = rewrite(&case.spec(), &case.devices) {
            let (before, after) = (entries_of(&case.spec()), entries_of(&after));
            prop_assert_eq!(before.len(), after.len());
            for (before, after) in before.iter().zip(&after) {
                match case.devices.iter().find(|device| device.container_path == *before.path()) {
                    Some(device) => prop_assert_eq!(entry_identity(after), Some(device.in_guest())),
                    None => prop_assert_eq!(before, after),
                }
            }
        }
    }

    #[test]
    fn rules_keep_their_number_and_are_changed_once_and_what_is_appended_names_a_guest_device(case in cases()) {
        if let Ok(after) = rewrite(&case.spec(), &case.devices) {
            let (before, after) = (rules_of(&case.spec()), rules_of(&after));
            prop_assert!(after.len() >= before.len());
            for (before, after) in before.iter().zip(&after) {
                let original = identity(before.typ(), before.major(), before.minor());
                let device = case.devices.iter().find(|device| Some(device.on_host()) == original);
                let mut expected = before.clone();
                if let Some(device) = device {
                    expected.set_major(Some(device.node.major)).set_minor(Some(device.node.minor));
                }
                prop_assert_eq!(&expected, after);
            }
            for appended in &after[before.len()..] {
                let named = identity(appended.typ(), appended.major(), appended.minor());
                prop_assert!(case.devices.iter().any(|device| Some(device.in_guest()) == named));
            }
        }
    }

    #[test]
    fn a_container_may_do_here_what_it_might_on_the_host(case in cases()) {
        if let Ok(after) = rewrite(&case.spec(), &case.devices) {
            let before = Rule::parse_all(&rules_of(&case.spec())).unwrap();
            let after = Rule::parse_all(&rules_of(&after)).unwrap();
            for device in &case.devices {
                // Of several host devices that are one here, what may be done with any of them.
                let one = case.devices.iter().filter(|other| other.in_guest() == device.in_guest());
                let expected = one.fold(Access::NONE, |all, other| all.with(
                    if before.is_empty() { Access::ALL } else { granted(&before, other.on_host()) },
                ));
                prop_assert_eq!(granted(&after, device.in_guest()), expected);
            }
        }
    }

    #[test]
    fn no_number_that_is_only_the_hosts_survives(case in cases()) {
        if let Ok(after) = rewrite(&case.spec(), &case.devices) {
            let here: Vec<_> = case.devices.iter().map(LocatedDevice::in_guest).collect();
            let only_there: Vec<_> =
                case.devices.iter().map(LocatedDevice::on_host).filter(|host| !here.contains(host)).collect();
            for rule in rules_of(&after) {
                if let Some(named) = identity(rule.typ(), rule.major(), rule.minor()) {
                    prop_assert!(!only_there.contains(&named), "rule {}", rule);
                }
            }
            for entry in entries_of(&after) {
                let served = case.devices.iter().any(|device| device.container_path == *entry.path());
                let named = entry_identity(&entry).unwrap();
                prop_assert!(!served || !only_there.contains(&named), "{:?}", entry.path());
            }
        }
    }

    #[test]
    fn nothing_more_changes_nothing(case in cases()) {
        prop_assert_eq!(rewrite(&case.spec(), &[]).unwrap(), case.spec());
        if let Ok(after) = rewrite(&case.spec(), &case.devices) {
            prop_assert_eq!(rewrite(&after, &[]).unwrap(), after);
        }
    }

    #[test]
    fn an_error_leaves_the_spec_as_it_was(case in cases(), guest in 5i64..9) {
        // An alias that goes elsewhere, and a device nobody asked for.
        let mut devices = case.devices.clone();
        devices.push(device(("/dev/absent", 'b', 8, 0), (8, guest)));
        let spec = case.spec();
        prop_assert!(rewrite(&spec, &devices).is_err());
        prop_assert_eq!(spec, case.spec());
    }
}
