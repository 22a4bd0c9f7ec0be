//! Tables of whole specs before and after, and two properties: order does not matter, once is enough.

use super::*;
use oci_spec::runtime::{LinuxBuilder, LinuxDeviceBuilder, LinuxResourcesBuilder, SpecBuilder};
use proptest::prelude::*;

/// An entry: path, type, major, minor.
type Entry = (&'static str, char, i64, i64);
/// A rule: type, major, minor; -1 is a wildcard.
type Rule = (char, i64, i64);

fn typ(letter: char) -> LinuxDeviceType {
    match letter {
        'a' => LinuxDeviceType::A,
        'b' => LinuxDeviceType::B,
        'c' => LinuxDeviceType::C,
        'u' => LinuxDeviceType::U,
        other => panic!("{other} is no type"),
    }
}

fn kind(letter: char) -> DeviceKind {
    if letter == 'b' { DeviceKind::Block } else { DeviceKind::Character }
}

fn spec(entries: &[Entry], rules: Option<&[Rule]>) -> Spec {
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
        let rules: Vec<_> = rules
            .iter()
            .map(|&(letter, major, minor)| {
                let mut rule =
                    LinuxDeviceCgroupBuilder::default().allow(true).typ(typ(letter)).build().unwrap();
                rule.set_major((major >= 0).then_some(major)).set_minor((minor >= 0).then_some(minor));
                rule.set_access(Some("rwm".into()));
                rule
            })
            .collect();
        LinuxResourcesBuilder::default().devices(rules).build().unwrap()
    }));
    SpecBuilder::default().linux(linux).build().unwrap()
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

fn check(before: (&[Entry], Option<&[Rule]>), devices: &[LocatedDevice], after: (&[Entry], Option<&[Rule]>)) {
    assert_eq!(rewrite(&spec(before.0, before.1), devices).unwrap(), spec(after.0, after.1));
}

#[test]
fn an_entry_and_its_rule_follow_their_device() {
    let sda = ("/dev/sda", 'b', 8, 0);
    check(
        (&[sda], Some(&[('b', 8, 0)])),
        &[device(sda, (254, 0))],
        (&[("/dev/sda", 'b', 254, 0)], Some(&[('b', 254, 0)])),
    );
}

#[test]
fn a_chain_of_numbers_is_followed_one_step_only() {
    let (a, b) = (("/dev/a", 'c', 1, 3), ("/dev/b", 'c', 1, 5));
    check(
        (&[a, b], Some(&[('c', 1, 3), ('c', 1, 5)])),
        &[device(a, (1, 5)), device(b, (1, 7))],
        (&[("/dev/a", 'c', 1, 5), ("/dev/b", 'c', 1, 7)], Some(&[('c', 1, 5), ('c', 1, 7)])),
    );
}

#[test]
fn two_devices_can_swap_their_numbers() {
    let (a, b) = (("/dev/a", 'b', 8, 0), ("/dev/b", 'b', 8, 16));
    check(
        (&[a, b], Some(&[('b', 8, 0), ('b', 8, 16)])),
        &[device(b, (8, 0)), device(a, (8, 16))],
        (&[("/dev/a", 'b', 8, 16), ("/dev/b", 'b', 8, 0)], Some(&[('b', 8, 16), ('b', 8, 0)])),
    );
}

#[test]
fn a_character_device_is_not_taken_for_a_block_device_of_its_number() {
    let (c, b) = (("/dev/c", 'c', 99, 99), ("/dev/b", 'b', 99, 99));
    check(
        (&[c, b], Some(&[('c', 99, 99), ('b', 99, 99)])),
        &[device(c, (1, 3))],
        (&[("/dev/c", 'c', 1, 3), b], Some(&[('c', 1, 3), ('b', 99, 99)])),
    );
}

#[test]
fn a_path_can_change_with_its_number() {
    let vfio = ("/dev/vfio/12", 'c', 243, 4);
    let mut group = device(vfio, (242, 0));
    group.guest_path = Some("/dev/vfio/0".into());
    check(
        (&[vfio], Some(&[('c', 243, 4)])),
        &[group],
        (&[("/dev/vfio/0", 'c', 242, 0)], Some(&[('c', 242, 0)])),
    );
}

#[test]
fn rules_with_a_wildcard_keep_it() {
    let sda = ("/dev/sda", 'b', 8, 0);
    check(
        (&[sda], Some(&[('b', 8, -1), ('a', -1, -1), ('b', -1, 0)])),
        &[device(sda, (254, 0))],
        (&[("/dev/sda", 'b', 254, 0)], Some(&[('b', 8, -1), ('a', -1, -1), ('b', -1, 0), ('b', 254, 0)])),
    );
}

#[test]
fn without_resources_the_device_is_still_allowed() {
    let null = ("/dev/null", 'c', 1, 3);
    check((&[null], None), &[device(null, (1, 5))], (&[("/dev/null", 'c', 1, 5)], Some(&[('c', 1, 5)])));
}

#[test]
fn the_rule_appended_for_one_device_is_not_changed_for_another() {
    // The guest's number of A is the host's number of B.
    let (a, b) = (("/dev/a", 'b', 8, 0), ("/dev/b", 'b', 254, 0));
    check(
        (&[a, b], Some(&[])),
        &[device(a, (254, 0)), device(b, (254, 16))],
        (&[("/dev/a", 'b', 254, 0), ("/dev/b", 'b', 254, 16)], Some(&[('b', 254, 0), ('b', 254, 16)])),
    );
}

#[test]
fn two_paths_of_one_device_are_fine_if_they_stay_one_device() {
    let (a, b) = (("/dev/a", 'c', 1, 3), ("/dev/b", 'c', 1, 3));
    check(
        (&[a, b], Some(&[('c', 1, 3)])),
        &[device(a, (1, 5)), device(b, (1, 5))],
        (&[("/dev/a", 'c', 1, 5), ("/dev/b", 'c', 1, 5)], Some(&[('c', 1, 5)])),
    );
    let error = rewrite(&spec(&[a, b], None), &[device(b, (1, 5)), device(a, (1, 7))]).unwrap_err();
    assert_eq!(error, RewriteError::Split { first: "/dev/a".into(), second: "/dev/b".into() });
}

#[test]
fn a_device_without_an_entry_is_refused_by_name() {
    let absent = device(("/dev/x", 'b', 8, 0), (254, 0));
    let error = rewrite(&spec(&[("/dev/y", 'b', 8, 0)], None), std::slice::from_ref(&absent)).unwrap_err();
    assert_eq!(error, RewriteError::NoEntry("/dev/x".into()));
    let mut without_linux = spec(&[], None);
    without_linux.set_linux(None);
    assert_eq!(rewrite(&without_linux, &[absent]).unwrap_err(), RewriteError::NoEntry("/dev/x".into()));
}

#[test]
fn two_devices_for_one_entry_are_refused() {
    let sda = ("/dev/sda", 'b', 8, 0);
    let error = rewrite(&spec(&[sda], None), &[device(sda, (254, 0)), device(sda, (254, 0))]).unwrap_err();
    assert_eq!(error, RewriteError::TwoDevices("/dev/sda".into()));
}

#[test]
fn an_entry_of_another_number_or_type_is_refused() {
    let sda = device(("/dev/sda", 'b', 8, 0), (254, 0));
    for entry in [("/dev/sda", 'b', 8, 16), ("/dev/sda", 'c', 8, 0)] {
        let error = rewrite(&spec(&[entry], None), std::slice::from_ref(&sda)).unwrap_err();
        assert!(matches!(error, RewriteError::OtherIdentity { .. }), "{error}");
    }
    let mut mixed = sda;
    mixed.node.kind = DeviceKind::Character;
    let error = rewrite(&spec(&[("/dev/sda", 'b', 8, 0)], None), &[mixed]).unwrap_err();
    assert_eq!(error, RewriteError::OtherKind("/dev/sda".into()));
}

#[test]
fn an_unbuffered_character_device_is_a_character_device() {
    let tty = ("/dev/tty9", 'u', 4, 9);
    check(
        (&[tty], Some(&[('u', 4, 9)])),
        &[device(tty, (4, 1))],
        (&[("/dev/tty9", 'u', 4, 1)], Some(&[('u', 4, 1), ('c', 4, 1)])),
    );
}

#[test]
fn no_devices_change_nothing() {
    let plain = spec(&[("/dev/sda", 'b', 8, 0)], None);
    assert_eq!(rewrite(&plain, &[]).unwrap(), plain);
}

const PATHS: [&str; 6] = ["/dev/p0", "/dev/p1", "/dev/p2", "/dev/p3", "/dev/p4", "/dev/p5"];

prop_compose! {
    /// Up to six entries whose host and guest numbers overlap as much as they can.
    fn entries_and_devices()(
        numbers in prop::collection::vec((any::<bool>(), 0i64..4, 0i64..4), 1..6)
    ) -> (Vec<Entry>, Vec<LocatedDevice>) {
        numbers
            .iter()
            .enumerate()
            .map(|(i, &(block, minor, guest))| {
                let entry = (PATHS[i], if block { 'b' } else { 'c' }, 8, minor);
                (entry, device(entry, (8, guest)))
            })
            .unzip()
    }
}

proptest! {
    #[test]
    fn the_order_of_devices_does_not_matter(
        (entries, devices) in entries_and_devices(),
        seed in any::<prop::sample::Index>(),
    ) {
        let rules: Vec<Rule> = entries.iter().map(|&(_, letter, major, minor)| (letter, major, minor)).collect();
        let spec = spec(&entries, Some(&rules));
        let mut turned = devices.clone();
        turned.rotate_left(seed.index(devices.len()));
        turned.reverse();
        let sorted = |result: Result<Spec, RewriteError>| result.map(|spec| {
            let linux = spec.linux().clone().unwrap();
            let entries = linux.devices().clone().unwrap();
            let (own, appended) = linux.resources().as_ref().unwrap().devices().as_ref().unwrap()
                .split_at(rules.len());
            let mut appended: Vec<String> = appended.iter().map(ToString::to_string).collect();
            appended.sort();
            (entries, own.to_vec(), appended)
        });
        let (one, other) = (sorted(rewrite(&spec, &devices)), sorted(rewrite(&spec, &turned)));
        // Which of several conflicts is named may differ; that there is one may not.
        prop_assert_eq!(one.is_ok(), other.is_ok());
        if let (Ok(one), Ok(other)) = (one, other) {
            prop_assert_eq!(one, other);
        }
    }

    #[test]
    fn every_entry_and_rule_is_changed_once((entries, devices) in entries_and_devices()) {
        let rules: Vec<Rule> = entries.iter().map(|&(_, letter, major, minor)| (letter, major, minor)).collect();
        if let Ok(after) = rewrite(&spec(&entries, Some(&rules)), &devices) {
            let linux = after.linux().clone().unwrap();
            let after_rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
            for (i, device) in devices.iter().enumerate() {
                let entry = &linux.devices().as_ref().unwrap()[i];
                prop_assert_eq!((entry.major(), entry.minor()), (device.node.major, device.node.minor));
                prop_assert_eq!(after_rules[i].minor(), Some(device.node.minor));
            }
        }
    }
}
