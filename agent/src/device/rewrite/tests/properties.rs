//! What holds of any spec and any devices.

use proptest::prelude::*;

use super::*;
use crate::device::GuestNode;

const PATHS: [&str; 8] =
    ["/dev/p0", "/dev/p1", "/dev/p2", "/dev/p3", "/dev/p4", "/dev/p5", "/dev/p6", "/dev/p7"];
const NODES: [&str; 5] = ["/dev/n0", "/dev/n1", "/dev/n2", "/dev/n3", "/dev/n4"];
const ACCESS: [&str; 6] = ["rwm", "r", "rw", "!w", "!rwm", "m"];

/// Entries, the rules of the spec, and the devices assigned for the entries.
#[derive(Debug, Clone)]
struct Case {
    entries: Vec<Entry>,
    rules: Vec<RuleRow>,
    devices: Vec<AssignedDevice>,
}

impl Case {
    fn spec(&self) -> Spec {
        spec(&self.entries, Some(&self.rules))
    }

    fn rules(&self) -> Vec<Rule> {
        Rule::parse_all(super::super::rules(&self.spec())).unwrap()
    }

    /// Each device of the host among the entries, with the numbers it has here.
    fn becomes(&self) -> Vec<(Identity, Vec<Identity>)> {
        let here = |entry: &Entry| -> Vec<Identity> {
            let mut served = self.devices.iter().filter(|device| device.host == host(*entry)).peekable();
            if served.peek().is_none() {
                return vec![host(*entry)];
            }
            served
                .flat_map(AssignedDevice::guest_nodes)
                .map(|GuestNode { node, .. }| node.identity())
                .collect()
        };
        self.entries.iter().map(|entry| (host(*entry), here(entry))).collect()
    }

    /// What the container may do with a device of the guest, by what the rules say on the host.
    fn expected(&self, asked: Identity) -> Access {
        let (rules, becomes) = (self.rules(), self.becomes());
        let may = |host| if rules.is_empty() { Access::ALL } else { granted(&rules, host) };
        let hosts = becomes.iter().filter(|(_, here)| here.contains(&asked));
        let served: Vec<_> = hosts.map(|(host, _)| may(*host)).collect();
        let itself = standard::contains(asked) && becomes.iter().all(|(host, _)| *host != asked);
        if served.is_empty() && !itself {
            // A device that is not assigned: only the rules for all devices apply to it.
            let total = |rule: &&Rule| {
                let all = rule.major.is_none() && rule.minor.is_none();
                all && (!rule.allow || rule.kind.is_none() || rule.access == Access::MKNOD)
            };
            return granted(&rules.iter().filter(total).copied().collect::<Vec<_>>(), asked);
        }
        let itself = if itself { granted(&rules, asked) } else { Access::NONE };
        served.into_iter().fold(itself, Access::with)
    }
}

fn guests() -> impl Iterator<Item = Identity> {
    let kinds = [DeviceKind::Block, DeviceKind::Character];
    let numbers = [1, 8, 9].into_iter().flat_map(|major| (0..6).map(move |minor| (major, minor)));
    let numbers = numbers.chain([(10, 196), (136, 4)]);
    kinds.into_iter().flat_map(move |kind| numbers.clone().map(move |guest| number(kind, guest)))
}

prop_compose! {
    /// Host and guest numbers that overlap as much as they can: chains, swaps, aliases and conflicts; disks, functions
    /// with none, one or several nodes, and standard devices.
    fn cases()(
        entries in prop::collection::vec((0usize..5, 0i64..5, 0u32..5, any::<bool>()), 1..8),
        rules in prop::collection::vec((0usize..9, any::<prop::sample::Index>(), 0usize..ACCESS.len()), 0..10),
    ) -> Case {
        let mut case = Case { entries: Vec::new(), rules: Vec::new(), devices: Vec::new() };
        for (i, &(what, minor, guest, shared)) in entries.iter().enumerate() {
            let entry = (PATHS[i], if what == 0 { 'b' } else { 'c' }, if what == 4 { 1 } else { 8 }, minor);
            let node = |letter, minor: u32| (NODES[minor as usize % 5], letter, 8, minor);
            match what {
                0 | 1 => case.devices.push(device(entry, (8, guest))),
                2 => case.devices.push(function(entry, &[node('c', guest)], shared)),
                3 if shared => case.devices.push(function(entry, &[], false)),
                3 => case.devices.push(function(entry, &[node('c', guest), ("/dev/n9", 'b', 9, guest)], true)),
                // Null and zero; a row of any other number is refused.
                _ => {}
            }
            let standard = (entry.0, 'c', 1, if minor < 3 { 3 } else { 5 });
            case.entries.push(if what == 4 { standard } else { entry });
        }
        for (form, which, access) in rules {
            let (_, letter, major, minor) = case.entries[which.index(case.entries.len())];
            let access = ACCESS[access];
            case.rules.push(match form {
                0 => ('a', -1, -1, access),
                1 => (letter, -1, -1, access),
                2 => (letter, major, -1, access),
                3 => (letter, -1, minor, access),
                4 => ('a', major, minor, access),
                5 => ('c', 1, -1, access),
                6 => (letter, major, minor + 1, access),
                _ => (letter, major, minor, access),
            });
        }
        case
    }
}

fn entry_identity(entry: &LinuxDevice) -> Identity {
    crate::device::entries::identity(entry).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

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
    fn each_entry_becomes_the_nodes_of_its_own_device(case in cases()) {
        if let Ok(after) = rewrite(&case.spec(), &case.devices) {
            let becomes = case.becomes();
            let here = |entry: &Entry| {
                let mut of_entry = becomes.iter().filter(|(host, _)| *host == super::host(*entry));
                of_entry.next().unwrap().1.clone()
            };
            // Nodes in any order, those of one path once.
            let mut expected: Vec<_> = case.entries.iter().flat_map(here).collect();
            let mut found: Vec<_> = entries(&after).iter().map(entry_identity).collect();
            prop_assert!(found.len() <= expected.len());
            expected.sort();
            expected.dedup();
            found.sort();
            found.dedup();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_container_may_do_here_what_it_might_on_the_host(case in cases()) {
        if let Ok(after) = rewrite(&case.spec(), &case.devices) {
            let after = Rule::parse_all(super::super::rules(&after)).unwrap();
            for asked in guests() {
                let (has, expected) = (granted(&after, asked), case.expected(asked));
                prop_assert_eq!(has, expected, "{} by {:?}", asked, after);
            }
        }
    }

    #[test]
    fn no_number_that_is_only_the_hosts_survives(case in cases()) {
        if let Ok(after) = rewrite(&case.spec(), &case.devices) {
            let here: Vec<_> = case.becomes().into_iter().flat_map(|(_, here)| here).collect();
            for rule in Rule::parse_all(super::super::rules(&after)).unwrap() {
                let (major, minor) = (rule.major, rule.minor);
                let named = |(major, minor)| Identity { kind: rule.kind.unwrap(), major, minor };
                let is_guests = match major.zip(minor).map(named) {
                    Some(named) => here.contains(&named) || standard::contains(named),
                    None => major == Some(136) || (major, minor) == (None, None),
                };
                prop_assert!(is_guests, "rule {}", rule);
            }
            for entry in entries(&after) {
                prop_assert!(here.contains(&entry_identity(entry)), "{:?}", entry.path());
            }
        }
    }

    #[test]
    fn what_comes_by_itself_is_allowed_what_its_rules_allow_and_nothing_else(case in cases()) {
        let spec = case.spec();
        let rows = HostEntries::of(entries(&spec), &case.devices);
        if let Ok(Ok(rules)) = rows.as_ref().map(|rows| derive_plugged(&case.rules(), rows)) {
            let here: Vec<_> = case.becomes().into_iter().flat_map(|(_, here)| here).collect();
            for asked in guests() {
                let expected = if here.contains(&asked) { case.expected(asked) } else { Access::NONE };
                prop_assert_eq!(granted(&rules, asked), expected, "{}", asked);
            }
        }
    }

    #[test]
    fn an_error_leaves_the_spec_as_it_was(case in cases(), guest in 5u32..9) {
        // A device that is not requested.
        let mut devices = case.devices.clone();
        devices.push(device(("/dev/absent", 'b', 8, 0), (8, guest)));
        let spec = case.spec();
        prop_assert!(rewrite(&spec, &devices).is_err());
        prop_assert_eq!(spec, case.spec());
    }
}

#[test]
fn most_cases_are_rewritten() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let case = |_| cases().new_tree(&mut runner).unwrap().current();
    let all: Vec<_> = (0..400).map(case).collect();
    let fine = all.iter().filter(|case| rewrite(&case.spec(), &case.devices).is_ok()).count();
    assert!(fine > 40, "{fine} of 400 are no error");
}
