//! Plugging, unplugging and updates, step by step and in any order.

use proptest::prelude::*;

use super::*;
use crate::device::Node;
use crate::device::rule::Access;

/// A disk's entry: its path, and its minor numbers on the host and in the guest. The major number is 254.
type DiskEntry = (&'static str, u32, u32);

fn disk(&(path, host, guest): &DiskEntry) -> AssignedDevice {
    let node = Node { path: "/dev/vdx".into(), kind: DeviceKind::Block, major: 254, minor: guest };
    let host = block(host);
    AssignedDevice { entry: path.into(), host, pci_path: format!("{guest:02x}.0"), nodes: Nodes::Disk(node) }
}

/// A function of the test's one IOMMU group, which a program in the container drives.
fn function(nth: u32) -> AssignedDevice {
    let node =
        |path: String, major, minor| Node { path: path.into(), kind: DeviceKind::Character, major, minor };
    let nodes = Nodes::Function {
        host_address: format!("0000:00:03.{nth}"),
        guest_address: Some(format!("0000:00:07.{nth}")),
        own: vec![node(format!("/dev/vfio/noiommu-{nth}"), 243, nth)],
        shared: Some(node("/dev/vfio/vfio".into(), 10, 196)),
    };
    let host = Identity { kind: DeviceKind::Character, major: 243, minor: 4 };
    AssignedDevice { entry: "/dev/vfio/12".into(), host, pci_path: format!("07.{nth}"), nodes }
}

fn block(minor: u32) -> Identity {
    Identity { kind: DeviceKind::Block, major: 254, minor }
}

fn rules(json: serde_json::Value) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_value(json).unwrap()
}

fn linux(devices: serde_json::Value, rules: serde_json::Value) -> serde_json::Value {
    serde_json::json!({"devices": devices, "resources": {"devices": rules}})
}

fn created(linux: &serde_json::Value, devices: Vec<AssignedDevice>) -> Result<Inventory> {
    let spec = serde_json::json!({"ociVersion": "1.1.0", "linux": linux});
    Inventory::new(&serde_json::from_value(spec).unwrap(), devices)
}

fn entry_group(linux: &serde_json::Value, devices: Vec<AssignedDevice>) -> EntryGroup {
    EntryGroup::new(linux.to_string().as_bytes(), devices).unwrap()
}

fn disk_entry(&(path, host, _): &DiskEntry) -> serde_json::Value {
    serde_json::json!({"path": path, "type": "b", "major": 254, "minor": host, "fileMode": 0o600, "gid": 6})
}

fn disk_rule(host: u32, access: &str) -> serde_json::Value {
    serde_json::json!({"allow": true, "type": "b", "major": 254, "minor": host, "access": access})
}

fn deny_all() -> serde_json::Value {
    serde_json::json!({"allow": false, "access": "rwm"})
}

fn group_entry() -> serde_json::Value {
    serde_json::json!({"path": "/dev/vfio/12", "type": "c", "major": 243, "minor": 4})
}

fn group_rule(access: &str) -> serde_json::Value {
    serde_json::json!({"allow": true, "type": "c", "major": 243, "minor": 4, "access": access})
}

/// Two disks with each other's numbers in the guest.
fn two_disks() -> Inventory {
    let rows = [("/dev/a", 0, 16), ("/dev/b", 16, 0)];
    let rules = serde_json::json!([deny_all(), disk_rule(0, "rwm"), disk_rule(16, "r")]);
    let entries = serde_json::json!([disk_entry(&rows[0]), disk_entry(&rows[1])]);
    created(&linux(entries, rules), rows.iter().map(disk).collect()).unwrap()
}

fn plug(inventory: &mut Inventory, group: EntryGroup) -> Vec<String> {
    let (after, nodes) = inventory.plug(group).unwrap();
    *inventory = after;
    paths(&nodes)
}

fn unplug(inventory: &mut Inventory, entry: &str, host_address: &str) -> Vec<String> {
    let (entry, host_pci_address) = (entry.to_owned(), host_address.to_owned());
    let named = [PluggedDevice { entry, host_pci_address, ..Default::default() }];
    let (after, unplugged) = inventory.unplug(&named).unwrap();
    *inventory = after;
    paths(&unplugged.nodes)
}

fn paths(nodes: &[DeviceNode]) -> Vec<String> {
    nodes.iter().map(|node| node.path.display().to_string()).collect()
}

fn may(inventory: &Inventory, device: Identity) -> String {
    granted(inventory.rules(), device).to_string()
}

/// The rules without those of every container.
fn shown(inventory: &Inventory) -> Vec<String> {
    let default: Vec<_> = default_rules().collect();
    inventory.rules().iter().filter(|rule| !default.contains(rule)).map(ToString::to_string).collect()
}

#[test]
fn rules_of_an_update_are_the_hosts_and_become_the_guests() {
    let update = rules(serde_json::json!([deny_all(), disk_rule(0, "r")]));
    let after = two_disks().with_rules(&update).unwrap();
    assert_eq!(may(&after, block(16)), "rm", "A, which is 254:0 on the host");
    assert_eq!(may(&after, block(0)), "m", "B");
}

#[test]
fn an_update_cannot_allow_what_is_not_assigned() {
    let inventory = two_disks();
    // 254:32 is a neighbour's disk in the guest.
    let error = inventory.with_rules(&rules(serde_json::json!([disk_rule(32, "rwm")]))).unwrap_err();
    assert!(matches!(error, Fault::InvalidArgument(_)), "{error}");
    assert!(error.to_string().contains("b 254:32 rwm"), "{error}");
    let wide = serde_json::json!([{"allow": true, "type": "b", "major": 254, "access": "rwm"}]);
    let after = inventory.with_rules(&rules(wide.clone())).unwrap();
    assert_eq!([0, 16, 32].map(|minor| may(&after, block(minor))), ["rwm", "rwm", "m"]);
    // As when a container is made, and when something comes to it.
    let alone = linux(serde_json::json!([]), serde_json::json!([disk_rule(32, "rwm")]));
    assert!(created(&alone, Vec::new()).is_err());
    assert!(inventory.plug(entry_group(&alone, Vec::new())).is_err());
    let row = ("/dev/c", 3, 48);
    let one = linux(serde_json::json!([disk_entry(&row)]), wide);
    let (after, _) = inventory.plug(entry_group(&one, vec![disk(&row)])).unwrap();
    assert_eq!([0, 16, 32, 48].map(|minor| may(&after, block(minor))), ["rm", "rwm", "m", "rwm"]);
}

#[test]
fn too_many_rules_are_refused() {
    let all = rules(vec![serde_json::json!({"allow": true}); MAX_RULES].into());
    assert!(matches!(two_disks().with_rules(&all), Err(Fault::InvalidArgument(_))));
}

#[test]
fn an_attached_disk_follows_rules_of_an_update_and_is_forgotten() {
    let mut inventory = two_disks();
    let row = ("/dev/c", 3, 32);
    let one = linux(serde_json::json!([disk_entry(&row)]), serde_json::json!([disk_rule(3, "r")]));
    let new = entry_group(&one, vec![disk(&row)]);
    let node = inventory.plug(new.clone()).unwrap().1.remove(0);
    assert_eq!((node.mode, node.gid), (0o600, 6));
    assert_eq!(plug(&mut inventory, new), ["/dev/c"]);
    assert_eq!(shown(&inventory).last().unwrap(), "allow b 254:32 r");
    let other = ("/dev/d", 3, 32);
    let again = entry_group(
        &linux(serde_json::json!([disk_entry(&other)]), serde_json::json!([])),
        vec![disk(&other)],
    );
    let error = inventory.plug(again).unwrap_err().to_string();
    assert!(error.contains("/dev/d") && error.contains("/dev/c"), "{error}");

    inventory = inventory.with_rules(&rules(serde_json::json!([disk_rule(3, "rw")]))).unwrap();
    let found = inventory.report().unwrap().0;
    let found = found.iter().find(|found| found.entry == "/dev/c").unwrap();
    assert_eq!((found.access.as_str(), found.pci_path.as_str()), ("rwm", "20.0"));
    assert_eq!(may(&inventory, block(16)), "m", "the update says nothing of it");
    assert_eq!(unplug(&mut inventory, "/dev/a", ""), [""; 0], "what the spec has stays");
    assert_eq!(unplug(&mut inventory, "/dev/c", ""), ["/dev/c"]);
    assert_eq!(
        shown(&inventory),
        ["deny a *:* rwm"],
        "the update's rule goes with it, and allows nothing more"
    );
    assert_eq!([0, 16].map(|minor| may(&inventory, block(minor))), ["m", "m"]);
    assert_eq!(inventory.report().unwrap().0.len(), 2);
}

#[test]
fn a_node_that_two_functions_share_is_removed_with_the_last() {
    let mut inventory = Inventory::default().checked().unwrap();
    let group = linux(serde_json::json!([group_entry()]), serde_json::json!([group_rule("rw")]));
    let first = entry_group(&group, vec![function(0)]);
    assert_eq!(plug(&mut inventory, first), ["/dev/vfio/noiommu-0", "/dev/vfio/vfio"]);
    assert_eq!(plug(&mut inventory, entry_group(&group, vec![function(1)])), ["/dev/vfio/noiommu-1"]);
    assert_eq!(shown(&inventory), ["allow c 10:196 rw", "allow c 243:0 rw", "allow c 243:1 rw"]);
    assert_eq!(inventory.pci_addresses().len(), 2);
    assert_eq!(unplug(&mut inventory, "/dev/vfio/12", "0000:00:03.0"), ["/dev/vfio/noiommu-0"]);
    assert_eq!(shown(&inventory), ["allow c 10:196 rw", "allow c 243:1 rw"]);
    let both = ["/dev/vfio/noiommu-1", "/dev/vfio/vfio"];
    assert_eq!(unplug(&mut inventory, "/dev/vfio/12", "0000:00:03.1"), both);
    assert_eq!(inventory, Inventory::default().checked().unwrap());
}

#[test]
fn a_rule_of_an_update_goes_with_the_last_device_it_is_for() {
    let mut inventory = two_disks();
    let group = linux(serde_json::json!([group_entry()]), serde_json::json!([group_rule("r")]));
    plug(&mut inventory, entry_group(&group, vec![function(0)]));
    inventory = inventory.with_rules(&rules(serde_json::json!([group_rule("rw")]))).unwrap();
    // It has rules of its own, so the update's are for the first alone.
    plug(&mut inventory, entry_group(&group, vec![function(1)]));
    unplug(&mut inventory, "/dev/vfio/12", "0000:00:03.0");
    assert_eq!(shown(&inventory), ["deny a *:* rwm", "allow c 10:196 r", "allow c 243:1 r"]);
}

#[test]
fn functions_that_are_plugged_together_are_unplugged_one_by_one() {
    let mut inventory = Inventory::default().checked().unwrap();
    let group = linux(serde_json::json!([group_entry()]), serde_json::json!([]));
    plug(&mut inventory, entry_group(&group, vec![function(1), function(0)]));
    let found = inventory.report().unwrap().0;
    let found: Vec<_> =
        found.iter().map(|found| format!("{} {}", found.container_path, found.pci_path)).collect();
    assert_eq!(found, ["/dev/vfio/noiommu-0 07.0", "/dev/vfio/noiommu-1 07.1", "/dev/vfio/vfio 07.0"]);
    assert_eq!(unplug(&mut inventory, "/dev/vfio/12", "0000:00:03.1"), ["/dev/vfio/noiommu-1"]);
    assert_eq!(inventory.report().unwrap().0.len(), 2);
    assert_eq!(unplug(&mut inventory, "/dev/vfio/12", "0000:00:03.0").len(), 2);
    assert_eq!(inventory.report().unwrap().0, []);
}

#[test]
fn a_standard_device_of_the_spec_is_neither_plugged_nor_unplugged() {
    let mut inventory = Inventory::default().checked().unwrap();
    let null = linux(
        serde_json::json!([{"path": "/dev/nothing", "type": "c", "major": 1, "minor": 3}]),
        serde_json::json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]),
    );
    assert_eq!(plug(&mut inventory, entry_group(&null, Vec::new())), ["/dev/nothing"]);
    assert_eq!(unplug(&mut inventory, "/dev/nothing", ""), ["/dev/nothing"]);
    assert_eq!(inventory, Inventory::default().checked().unwrap());

    // The container was created with it.
    let mut inventory = created(&null, Vec::new()).unwrap();
    let before = inventory.clone();
    assert_eq!(plug(&mut inventory, entry_group(&null, Vec::new())), [""; 0]);
    assert_eq!(unplug(&mut inventory, "/dev/nothing", ""), [""; 0]);
    assert_eq!((inventory.report().unwrap().0.len(), inventory), (1, before));
}

#[test]
fn a_group_without_a_node_of_its_own_is_found_by_its_address_all_the_same() {
    let mut inventory = Inventory::default().checked().unwrap();
    let group = linux(serde_json::json!([group_entry()]), serde_json::json!([]));
    let mut interface = function(0);
    let Nodes::Function { own, shared, .. } = &mut interface.nodes else { unreachable!() };
    own.clear();
    *shared = None;
    assert_eq!(plug(&mut inventory, entry_group(&group, vec![interface])), [""; 0]);
    assert_eq!(inventory.pci_addresses()["0000:00:03.0"], "0000:00:07.0");
    assert_eq!(unplug(&mut inventory, "/dev/vfio/12", "0000:00:03.0"), [""; 0]);
    assert!(inventory.pci_addresses().is_empty());
}

/// Devices to plug and unplug: two functions of a group, two disks, a standard device.
const CANDIDATES: usize = 5;
const ACCESS: [&str; 4] = ["rwm", "r", "rw", ""];

struct Candidate {
    group: EntryGroup,
    entry: &'static str,
    address: String,
    host: Identity,
    nodes: Vec<Identity>,
}

/// `access` is that of the device's rule; empty for a list of rules that does not allow the device.
fn candidate(which: usize, access: &str) -> Candidate {
    let kind = DeviceKind::Character;
    let rule = |rule| if access.is_empty() { deny_all() } else { rule };
    let of = |entry, rule, devices| {
        entry_group(&linux(serde_json::json!([entry]), serde_json::json!([rule])), devices)
    };
    match which {
        0 | 1 => {
            let nth = u32::try_from(which).unwrap();
            Candidate {
                group: of(group_entry(), rule(group_rule(access)), vec![function(nth)]),
                entry: "/dev/vfio/12",
                address: format!("0000:00:03.{nth}"),
                host: Identity { kind, major: 243, minor: 4 },
                nodes: vec![
                    Identity { kind, major: 243, minor: nth },
                    Identity { kind, major: 10, minor: 196 },
                ],
            }
        }
        2 | 3 => {
            let row = if which == 2 { ("/dev/c", 3, 48) } else { ("/dev/d", 48, 3) };
            Candidate {
                group: of(disk_entry(&row), rule(disk_rule(row.1, access)), vec![disk(&row)]),
                entry: row.0,
                address: String::new(),
                host: block(row.1),
                nodes: vec![block(row.2)],
            }
        }
        _ => {
            let fuse = Identity { kind, major: 10, minor: 229 };
            let entry = serde_json::json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229});
            let own = serde_json::json!(
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": access});
            Candidate {
                group: of(entry, rule(own), Vec::new()),
                entry: "/dev/fuse",
                address: String::new(),
                host: fuse,
                nodes: vec![fuse],
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Plug(usize, usize),
    Unplug(usize),
    /// A rule for a driver, and one for a device.
    Update(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..CANDIDATES, 0..ACCESS.len()).prop_map(|(which, access)| Step::Plug(which, access)),
        2 => (0..CANDIDATES).prop_map(Step::Unplug),
        1 => (0..CANDIDATES, 0..ACCESS.len()).prop_map(|(which, access)| Step::Update(which, access)),
    ];
    prop::collection::vec(step, 1..30)
}

/// The host's rules of an update: one for a driver's disks, and one for a device.
fn update(which: usize, access: &str) -> Vec<LinuxDeviceCgroup> {
    let Identity { kind, major, minor } = candidate(which, access).host;
    let letter = kind.letter().to_string();
    let one = serde_json::json!(
        {"allow": true, "type": letter, "major": major, "minor": minor, "access": access});
    let all = serde_json::json!({"allow": true, "type": "b", "major": 254, "access": "r"});
    rules(if access.is_empty() { serde_json::json!([all]) } else { serde_json::json!([all, one]) })
}

proptest! {
    /// After any sequence of steps each node may be used as the host's rules for it say, no other device of the guest
    /// may be used, and a step that is an error has changed nothing.
    #[test]
    fn every_step_gives_what_the_hosts_rules_give_and_no_more(steps in steps()) {
        let mut inventory = two_disks();
        // The rules for each plugged device: its own, or those of the last update.
        let mut plugged: [Option<Vec<Rule>>; CANDIDATES] = Default::default();
        let mut container = inventory.host_rules.clone();
        for step in steps {
            let before = inventory.clone();
            let after = match step {
                Step::Plug(which, access) => {
                    let candidate = candidate(which, ACCESS[access]);
                    let own = candidate.group.rules.clone();
                    // A standard device may be plugged again: it is the same device.
                    let fresh = plugged[which].is_none();
                    let after = inventory.plug(candidate.group);
                    prop_assert_eq!(after.is_ok(), fresh || which == 4, "{} {:?}", which, after);
                    if fresh { plugged[which] = own; } else if which == 4 { continue; }
                    after.map(|(after, _)| after)
                }
                Step::Unplug(which) => {
                    let Candidate { entry, address, .. } = candidate(which, "r");
                    let (entry, host_pci_address) = (entry.to_owned(), address);
                    let named = PluggedDevice { entry, host_pci_address, ..Default::default() };
                    let (after, unplugged) = inventory.unplug(&[named]).unwrap();
                    prop_assert_eq!(unplugged.nodes.is_empty(), plugged[which].is_none());
                    plugged[which] = None;
                    container.clone_from(&after.host_rules);
                    Ok(after)
                }
                Step::Update(which, access) => {
                    let update = update(which, ACCESS[access]);
                    let names_nothing = match which {
                        0 | 1 => plugged[0].is_none() && plugged[1].is_none(),
                        2 | 3 => plugged[which].is_none(),
                        _ => false,
                    };
                    let after = inventory.with_rules(&update);
                    prop_assert_eq!(after.is_err(), names_nothing && !ACCESS[access].is_empty());
                    if after.is_ok() {
                        container = Rule::parse_all(&update).unwrap();
                        for own in plugged.iter_mut().flatten() {
                            own.clone_from(&container);
                        }
                    }
                    after
                }
            };
            match after {
                Ok(after) => inventory = after,
                Err(_) => prop_assert_eq!(&inventory, &before),
            }
            check(&inventory, &container, &plugged)?;
        }
        for which in 0..CANDIDATES {
            let Candidate { entry, address, .. } = candidate(which, "r");
            unplug(&mut inventory, entry, &address);
        }
        let left = two_disks();
        prop_assert_eq!(inventory.report().unwrap().0.len(), left.report().unwrap().0.len());
        prop_assert!(inventory.plugged.is_empty());
    }
}

fn check(
    inventory: &Inventory,
    container: &[Rule],
    plugged: &[Option<Vec<Rule>>; CANDIDATES],
) -> Result<(), TestCaseError> {
    let candidates: Vec<_> = (0..CANDIDATES).map(|which| candidate(which, "r")).collect();
    let character = |major, minor| Identity { kind: DeviceKind::Character, major, minor };
    let mut asked: Vec<_> = [0, 3, 16, 32, 48, 64].map(block).to_vec();
    asked.extend(
        [(243, 0), (243, 1), (243, 2), (243, 4), (10, 196), (10, 229), (1, 1)].map(|(a, b)| character(a, b)),
    );
    for device in asked {
        let of_candidates =
            candidates.iter().zip(plugged).filter(|(candidate, _)| candidate.nodes.contains(&device));
        let mut expected = of_candidates.fold(Access::MKNOD, |all, (candidate, own)| {
            own.as_ref().map_or(all, |own| all.with(granted(own, candidate.host)))
        });
        // A and B, whose numbers are exchanged; and what the rules say of a standard device.
        let host = match (device.kind, device.major, device.minor) {
            (DeviceKind::Block, 254, 0) => Some(block(16)),
            (DeviceKind::Block, 254, 16) => Some(block(0)),
            (DeviceKind::Character, 10, _) => Some(device),
            _ => None,
        };
        if let Some(host) = host {
            expected = expected.with(granted(container, host));
        }
        prop_assert_eq!(granted(inventory.rules(), device), expected, "{}: {:?}", device, inventory.rules());
    }
    Ok(())
}
