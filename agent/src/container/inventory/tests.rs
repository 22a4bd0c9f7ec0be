//! What comes, goes and is updated, step by step and in any order.

use proptest::prelude::*;

use super::*;
use crate::device::Node;
use crate::device::rule::Access;

/// An entry of a disk by its path, and its minor numbers on the host and here; the major number is 254.
type DiskRow = (&'static str, u32, u32);

fn disk(&(path, host, guest): &DiskRow) -> AssignedDevice {
    let node = Node { path: "/dev/vdx".into(), kind: DeviceKind::Block, major: 254, minor: guest };
    let host = block(host);
    AssignedDevice { entry: path.into(), host, pci_path: format!("{guest:02x}.0"), nodes: Nodes::Disk(node) }
}

/// A function of the one group there is, which a program in the container drives.
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

fn attachment(linux: &serde_json::Value, devices: Vec<AssignedDevice>) -> Attachment {
    Attachment::new(linux.to_string().as_bytes(), devices).unwrap()
}

fn disk_entry(&(path, host, _): &DiskRow) -> serde_json::Value {
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

/// Two disks whose numbers are exchanged here.
fn two_disks() -> Inventory {
    let rows = [("/dev/a", 0, 16), ("/dev/b", 16, 0)];
    let rules = serde_json::json!([deny_all(), disk_rule(0, "rwm"), disk_rule(16, "r")]);
    let entries = serde_json::json!([disk_entry(&rows[0]), disk_entry(&rows[1])]);
    created(&linux(entries, rules), rows.iter().map(disk).collect()).unwrap()
}

fn attach(inventory: &mut Inventory, attachment: Attachment) -> Vec<String> {
    let (after, nodes) = inventory.attach(attachment).unwrap();
    *inventory = after;
    paths(&nodes)
}

fn detach(inventory: &mut Inventory, entry: &str, host_address: &str) -> Vec<String> {
    let (entry, host_pci_address) = (entry.to_owned(), host_address.to_owned());
    let named = [PluggedDevice { entry, host_pci_address, ..Default::default() }];
    let (after, detached) = inventory.detach(&named).unwrap();
    *inventory = after;
    paths(&detached.nodes)
}

fn paths(nodes: &[DeviceNode]) -> Vec<String> {
    nodes.iter().map(|node| node.path.display().to_string()).collect()
}

fn may(inventory: &Inventory, device: Identity) -> String {
    granted(inventory.rules(), device).to_string()
}

/// The rules but for those of every container.
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
    assert!(inventory.attach(attachment(&alone, Vec::new())).is_err());
    let row = ("/dev/c", 3, 48);
    let one = linux(serde_json::json!([disk_entry(&row)]), wide);
    let (after, _) = inventory.attach(attachment(&one, vec![disk(&row)])).unwrap();
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
    let new = attachment(&one, vec![disk(&row)]);
    let node = inventory.attach(new.clone()).unwrap().1.remove(0);
    assert_eq!((node.mode, node.gid), (0o600, 6));
    assert_eq!(attach(&mut inventory, new), ["/dev/c"]);
    assert_eq!(shown(&inventory).last().unwrap(), "allow b 254:32 r");
    let other = ("/dev/d", 3, 32);
    let again = attachment(
        &linux(serde_json::json!([disk_entry(&other)]), serde_json::json!([])),
        vec![disk(&other)],
    );
    let error = inventory.attach(again).unwrap_err().to_string();
    assert!(error.contains("/dev/d") && error.contains("/dev/c"), "{error}");

    inventory = inventory.with_rules(&rules(serde_json::json!([disk_rule(3, "rw")]))).unwrap();
    let found = inventory.report().unwrap().0;
    let found = found.iter().find(|found| found.entry == "/dev/c").unwrap();
    assert_eq!((found.access.as_str(), found.pci_path.as_str()), ("rwm", "20.0"));
    assert_eq!(may(&inventory, block(16)), "m", "the update says nothing of it");
    assert_eq!(detach(&mut inventory, "/dev/a", ""), [""; 0], "what the spec has stays");
    assert_eq!(detach(&mut inventory, "/dev/c", ""), ["/dev/c"]);
    assert_eq!(
        shown(&inventory),
        ["deny a *:* rwm"],
        "the update's rule goes with it, and allows nothing more"
    );
    assert_eq!([0, 16].map(|minor| may(&inventory, block(minor))), ["m", "m"]);
    assert_eq!(inventory.report().unwrap().0.len(), 2);
}

#[test]
fn what_two_functions_share_goes_with_the_last() {
    let mut inventory = Inventory::default().checked().unwrap();
    let group = linux(serde_json::json!([group_entry()]), serde_json::json!([group_rule("rw")]));
    let first = attachment(&group, vec![function(0)]);
    assert_eq!(attach(&mut inventory, first), ["/dev/vfio/noiommu-0", "/dev/vfio/vfio"]);
    assert_eq!(attach(&mut inventory, attachment(&group, vec![function(1)])), ["/dev/vfio/noiommu-1"]);
    assert_eq!(shown(&inventory), ["allow c 10:196 rw", "allow c 243:0 rw", "allow c 243:1 rw"]);
    assert_eq!(inventory.pci_addresses().len(), 2);
    assert_eq!(detach(&mut inventory, "/dev/vfio/12", "0000:00:03.0"), ["/dev/vfio/noiommu-0"]);
    assert_eq!(shown(&inventory), ["allow c 10:196 rw", "allow c 243:1 rw"]);
    let both = ["/dev/vfio/noiommu-1", "/dev/vfio/vfio"];
    assert_eq!(detach(&mut inventory, "/dev/vfio/12", "0000:00:03.1"), both);
    assert_eq!(inventory, Inventory::default().checked().unwrap());
}

#[test]
fn a_rule_of_an_update_goes_with_the_last_device_it_is_for() {
    let mut inventory = two_disks();
    let group = linux(serde_json::json!([group_entry()]), serde_json::json!([group_rule("r")]));
    attach(&mut inventory, attachment(&group, vec![function(0)]));
    inventory = inventory.with_rules(&rules(serde_json::json!([group_rule("rw")]))).unwrap();
    // It has rules of its own, so the update's are for the first alone.
    attach(&mut inventory, attachment(&group, vec![function(1)]));
    detach(&mut inventory, "/dev/vfio/12", "0000:00:03.0");
    assert_eq!(shown(&inventory), ["deny a *:* rwm", "allow c 10:196 r", "allow c 243:1 r"]);
}

#[test]
fn functions_that_come_together_go_one_by_one() {
    let mut inventory = Inventory::default().checked().unwrap();
    let group = linux(serde_json::json!([group_entry()]), serde_json::json!([]));
    attach(&mut inventory, attachment(&group, vec![function(1), function(0)]));
    let found = inventory.report().unwrap().0;
    let found: Vec<_> =
        found.iter().map(|found| format!("{} {}", found.container_path, found.pci_path)).collect();
    assert_eq!(found, ["/dev/vfio/noiommu-0 07.0", "/dev/vfio/noiommu-1 07.1", "/dev/vfio/vfio 07.0"]);
    assert_eq!(detach(&mut inventory, "/dev/vfio/12", "0000:00:03.1"), ["/dev/vfio/noiommu-1"]);
    assert_eq!(inventory.report().unwrap().0.len(), 2);
    assert_eq!(detach(&mut inventory, "/dev/vfio/12", "0000:00:03.0").len(), 2);
    assert_eq!(inventory.report().unwrap().0, []);
}

#[test]
fn a_standard_device_leaves_what_the_container_was_made_with() {
    let mut inventory = Inventory::default().checked().unwrap();
    let null = linux(
        serde_json::json!([{"path": "/dev/nothing", "type": "c", "major": 1, "minor": 3}]),
        serde_json::json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]),
    );
    assert_eq!(attach(&mut inventory, attachment(&null, Vec::new())), ["/dev/nothing"]);
    assert_eq!(detach(&mut inventory, "/dev/nothing", ""), ["/dev/nothing"]);
    assert_eq!(inventory, Inventory::default().checked().unwrap());

    // One that is there neither comes nor goes.
    let mut inventory = created(&null, Vec::new()).unwrap();
    let before = inventory.clone();
    assert_eq!(attach(&mut inventory, attachment(&null, Vec::new())), [""; 0]);
    assert_eq!(detach(&mut inventory, "/dev/nothing", ""), [""; 0]);
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
    assert_eq!(attach(&mut inventory, attachment(&group, vec![interface])), [""; 0]);
    assert_eq!(inventory.pci_addresses()["0000:00:03.0"], "0000:00:07.0");
    assert_eq!(detach(&mut inventory, "/dev/vfio/12", "0000:00:03.0"), [""; 0]);
    assert!(inventory.pci_addresses().is_empty());
}

/// Something that comes and goes: two functions of a group, two disks, a standard device.
const COMERS: usize = 5;
const ACCESS: [&str; 4] = ["rwm", "r", "rw", ""];

struct Comer {
    attachment: Attachment,
    entry: &'static str,
    address: String,
    host: Identity,
    nodes: Vec<Identity>,
}

/// `access` of its rule; empty for a list of rules in which nothing allows it.
fn comer(which: usize, access: &str) -> Comer {
    let kind = DeviceKind::Character;
    let rule = |rule| if access.is_empty() { deny_all() } else { rule };
    let of = |entry, rule, devices| {
        attachment(&linux(serde_json::json!([entry]), serde_json::json!([rule])), devices)
    };
    match which {
        0 | 1 => {
            let nth = u32::try_from(which).unwrap();
            Comer {
                attachment: of(group_entry(), rule(group_rule(access)), vec![function(nth)]),
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
            Comer {
                attachment: of(disk_entry(&row), rule(disk_rule(row.1, access)), vec![disk(&row)]),
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
            Comer {
                attachment: of(entry, rule(own), Vec::new()),
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
    Attach(usize, usize),
    Detach(usize),
    /// Rules for all drivers, and one for a device.
    Update(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..COMERS, 0..ACCESS.len()).prop_map(|(which, access)| Step::Attach(which, access)),
        2 => (0..COMERS).prop_map(Step::Detach),
        1 => (0..COMERS, 0..ACCESS.len()).prop_map(|(which, access)| Step::Update(which, access)),
    ];
    prop::collection::vec(step, 1..30)
}

/// The host's rules of an update: a driver's disks may be read, and one device something else.
fn update(which: usize, access: &str) -> Vec<LinuxDeviceCgroup> {
    let Identity { kind, major, minor } = comer(which, access).host;
    let letter = kind.letter().to_string();
    let one = serde_json::json!(
        {"allow": true, "type": letter, "major": major, "minor": minor, "access": access});
    let all = serde_json::json!({"allow": true, "type": "b", "major": 254, "access": "r"});
    rules(if access.is_empty() { serde_json::json!([all]) } else { serde_json::json!([all, one]) })
}

proptest! {
    /// Whatever comes, goes and is updated, in whatever order: each node may be used as the host's rules for it say, no
    /// other device of the guest can be, and a step that is an error has changed nothing.
    #[test]
    fn every_step_gives_what_the_hosts_rules_give_and_no_more(steps in steps()) {
        let mut inventory = two_disks();
        // The rules that decide for each: its own, or those of the last update.
        let mut there: [Option<Vec<Rule>>; COMERS] = Default::default();
        let mut container = inventory.host_rules.clone();
        for step in steps {
            let before = inventory.clone();
            let after = match step {
                Step::Attach(which, access) => {
                    let comer = comer(which, ACCESS[access]);
                    let own = comer.attachment.rules.clone();
                    // A standard device is one and the same however often it comes.
                    let fresh = there[which].is_none();
                    let after = inventory.attach(comer.attachment);
                    prop_assert_eq!(after.is_ok(), fresh || which == 4, "{} {:?}", which, after);
                    if fresh { there[which] = own; } else if which == 4 { continue; }
                    after.map(|(after, _)| after)
                }
                Step::Detach(which) => {
                    let Comer { entry, address, .. } = comer(which, "r");
                    let (entry, host_pci_address) = (entry.to_owned(), address);
                    let named = PluggedDevice { entry, host_pci_address, ..Default::default() };
                    let (after, detached) = inventory.detach(&[named]).unwrap();
                    prop_assert_eq!(detached.nodes.is_empty(), there[which].is_none());
                    there[which] = None;
                    container.clone_from(&after.host_rules);
                    Ok(after)
                }
                Step::Update(which, access) => {
                    let update = update(which, ACCESS[access]);
                    let names_nothing = match which {
                        0 | 1 => there[0].is_none() && there[1].is_none(),
                        2 | 3 => there[which].is_none(),
                        _ => false,
                    };
                    let after = inventory.with_rules(&update);
                    prop_assert_eq!(after.is_err(), names_nothing && !ACCESS[access].is_empty());
                    if after.is_ok() {
                        container = Rule::parse_all(&update).unwrap();
                        for own in there.iter_mut().flatten() {
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
            check(&inventory, &container, &there)?;
        }
        for which in 0..COMERS {
            let Comer { entry, address, .. } = comer(which, "r");
            detach(&mut inventory, entry, &address);
        }
        let left = two_disks();
        prop_assert_eq!(inventory.report().unwrap().0.len(), left.report().unwrap().0.len());
        prop_assert!(inventory.attached.is_empty());
    }
}

fn check(
    inventory: &Inventory,
    container: &[Rule],
    there: &[Option<Vec<Rule>>; COMERS],
) -> Result<(), TestCaseError> {
    let comers: Vec<_> = (0..COMERS).map(|which| comer(which, "r")).collect();
    let character = |major, minor| Identity { kind: DeviceKind::Character, major, minor };
    let mut asked: Vec<_> = [0, 3, 16, 32, 48, 64].map(block).to_vec();
    asked.extend(
        [(243, 0), (243, 1), (243, 2), (243, 4), (10, 196), (10, 229), (1, 1)].map(|(a, b)| character(a, b)),
    );
    for device in asked {
        let of_comers = comers.iter().zip(there).filter(|(comer, _)| comer.nodes.contains(&device));
        let mut expected = of_comers.fold(Access::MKNOD, |all, (comer, own)| {
            own.as_ref().map_or(all, |own| all.with(granted(own, comer.host)))
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
