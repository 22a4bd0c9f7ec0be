//! The devices of one container: what it was made with, what was plugged in since, and everything else kept from it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::Context;
use kiai_protocol::agent::{FoundDevice, PluggedDevice};
use oci_spec::runtime::{LinuxDeviceCgroup, Spec};
use parking_lot::Mutex;

use super::batch::{Batch, Plugged, rows};
use super::lent::Lent;
use crate::cgroup::Cgroup;
use crate::device::filter::{self, MAX_RULES};
use crate::device::rule::{Identity, Rule, RuleError, default_rules, granted};
use crate::device::{DeviceKind, PciAddresses};
use crate::fault::{Fault, Result};
use crate::oci::DeviceNode;
use crate::sys;

/// What a container has of devices, and what it may do with them.
#[derive(Debug)]
pub struct Devices {
    /// The nodes it was made with.
    nodes: BTreeMap<PathBuf, Identity>,
    lent: Mutex<Lent>,
    /// In the order in which they came.
    plugged: Mutex<Vec<Plugged>>,
    in_force: Mutex<Option<Enforced>>,
}

/// Rules, the last one that fits deciding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// The spec's, or those of an update.
    own: Vec<Rule>,
    /// Of what was plugged in since.
    plugged: Vec<Rule>,
}

impl Rules {
    fn all(&self) -> impl Iterator<Item = &Rule> {
        self.own.iter().chain(&self.plugged)
    }
}

/// The rules in force and the program that has them.
#[derive(Debug)]
struct Enforced {
    rules: Rules,
    program: OwnedFd,
}

/// Rules the kernel has accepted, but does not follow yet.
#[must_use]
pub(super) struct Loaded<'a> {
    devices: &'a Devices,
    enforced: Enforced,
}

impl Loaded<'_> {
    /// Puts them in force, in the place of those that were.
    pub(super) fn enforce(self, cgroup: &Cgroup) -> Result<()> {
        let mut in_force = self.devices.in_force.lock();
        let replaced = in_force.as_ref().map(|enforced| &enforced.program);
        cgroup.filter_devices(&self.enforced.program, replaced).context("attach the device program")?;
        *in_force = Some(self.enforced);
        Ok(())
    }
}

/// What goes when devices are unplugged.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Leaving {
    devices: Vec<Plugged>,
    /// Those of their nodes that nothing else has.
    pub(super) nodes: Vec<DeviceNode>,
    /// Those of them that are gone from the guest afterwards.
    pub(super) ending: Vec<DeviceNode>,
}

impl Devices {
    /// The devices of a container that is made with `spec`, which has `lent` in it.
    pub(super) fn new(lent: Lent, spec: &Spec) -> Result<Self> {
        let nodes = rows(spec)?.into_iter().map(|node| (node.path.clone(), node.identity())).collect();
        let lent = Mutex::new(lent);
        Ok(Self { nodes, lent, plugged: Mutex::default(), in_force: Mutex::default() })
    }

    /// Where its passed PCI functions are, on the host and here.
    pub(super) fn pci_addresses(&self) -> PciAddresses {
        self.lent.lock().pci_addresses()
    }

    /// Loads the rules of a spec that is the guest's.
    pub(super) fn load(&self, spec: &Spec) -> Result<Loaded<'_>> {
        self.load_all(Rules { own: rules_of(spec)?, plugged: Vec::new() })
    }

    /// Loads rules of the host that are to replace all there are.
    pub(super) fn load_rules(&self, rules: &[LinuxDeviceCgroup]) -> Result<Loaded<'_>> {
        let spec = self.lent.lock().with_rules(rules)?;
        self.load(&spec)
    }

    /// Puts rules that are the guest's in force, unless they are.
    pub(super) fn change_rules(&self, rules: Rules, cgroup: &Cgroup) -> Result<()> {
        if rules == self.rules() { Ok(()) } else { self.load_all(rules)?.enforce(cgroup) }
    }

    fn load_all(&self, rules: Rules) -> Result<Loaded<'_>> {
        let all: Vec<Rule> = rules.all().copied().collect();
        if all.len() > MAX_RULES {
            return Err(Fault::InvalidArgument(format!("more than {MAX_RULES} device rules")));
        }
        let program = sys::load_device_program(&filter::program(&all)).context("load the device program")?;
        Ok(Loaded { devices: self, enforced: Enforced { rules, program } })
    }

    /// The rules in force.
    pub(super) fn rules(&self) -> Rules {
        self.in_force.lock().as_ref().map(|enforced| enforced.rules.clone()).unwrap_or_default()
    }

    /// The rules with those of a batch.
    pub(super) fn rules_with(&self, batch: &Batch) -> Rules {
        let mut rules = self.rules();
        for rule in &batch.rules {
            if !rules.plugged.contains(rule) {
                rules.plugged.push(*rule);
            }
        }
        rules
    }

    /// The rules without those of what leaves: a number that ends will be another device's.
    pub(super) fn rules_without(&self, leaving: &Leaving) -> Rules {
        let mut rules = self.rules();
        rules.own.retain(|rule| !leaving.ending.iter().any(|node| names(rule, node)));
        let plugged = self.plugged.lock();
        let stays = |node: &DeviceNode| {
            let others = plugged.iter().filter(|device| !leaving.devices.contains(device));
            others.flat_map(|device| &device.nodes).any(|other| other.identity() == node.identity())
        };
        let gone = leaving.devices.iter().flat_map(|device| &device.nodes);
        let gone: Vec<_> = gone.filter(|node| !stays(node)).collect();
        rules.plugged.retain(|rule| !gone.iter().any(|node| names(rule, node)));
        rules
    }

    /// Those nodes of a batch that are to be made. A device that would come to have two paths is refused, as its
    /// rule is for both. One of the guest's own that the container was made with does not come, and so does not go.
    pub(super) fn admit(&self, batch: &mut Batch) -> Result<Vec<DeviceNode>> {
        let plugged = self.plugged.lock();
        let mut there = self.nodes.clone();
        let nodes = plugged.iter().flat_map(|device| &device.nodes);
        there.extend(nodes.map(|node| (node.path.clone(), node.identity())));
        let mut to_make = Vec::new();
        for (node, lasts) in batch.nodes() {
            let identity = node.identity();
            let same =
                there.iter().find(|(path, other)| **path == node.path || (!lasts && **other == identity));
            match same {
                Some((path, other)) if lasts && *path == node.path && *other == identity => {}
                Some((other, _)) => {
                    let path = &node.path;
                    return Err(Fault::AlreadyExists(format!(
                        "device {path:?}: the container has it, or another, as {other:?}"
                    )));
                }
                None => {
                    there.insert(node.path.clone(), identity);
                    to_make.push(node.clone());
                }
            }
        }
        let is_old = |node: &DeviceNode| self.nodes.get(&node.path) == Some(&node.identity());
        batch.devices.retain(|device| device.ending().next().is_some() || !device.nodes.iter().all(is_old));
        // Rules for these and no others: those go with them.
        let Batch { devices, rules, .. } = batch;
        rules.retain(|rule| devices.iter().flat_map(|device| &device.nodes).any(|node| names(rule, node)));
        Ok(to_make)
    }

    /// The container has them from here on.
    pub(super) fn add(&self, batch: Batch) {
        self.plugged.lock().extend(batch.devices);
        self.lent.lock().extend(batch.lent);
    }

    /// What is to go with those of `named` that were plugged in.
    pub(super) fn leaving(&self, named: &[PluggedDevice]) -> Leaving {
        let plugged = self.plugged.lock();
        let is_named = |device: &&Plugged| named.iter().any(|name| device.is(name));
        let devices: Vec<Plugged> = plugged.iter().filter(is_named).cloned().collect();
        let others = || plugged.iter().filter(|device| !is_named(device)).flat_map(|device| &device.nodes);
        let has_other = |node: &DeviceNode| {
            self.nodes.contains_key(&node.path) || others().any(|other| other.path == node.path)
        };
        let mut nodes = Vec::new();
        for node in devices.iter().flat_map(|device| &device.nodes) {
            if !has_other(node) && !nodes.contains(node) {
                nodes.push(node.clone());
            }
        }
        let ending = devices.iter().flat_map(Plugged::ending).cloned().collect();
        Leaving { devices, nodes, ending }
    }

    /// It has them no more.
    pub(super) fn forget(&self, leaving: &Leaving) {
        self.plugged.lock().retain(|device| !leaving.devices.contains(device));
        let mut lent = self.lent.lock();
        for device in &leaving.devices {
            lent.forget(&device.entry, &device.host_address);
        }
    }

    /// What the host is told: each device, and the rules in force.
    pub fn report(&self) -> (Vec<FoundDevice>, Vec<String>) {
        let rules: Vec<Rule> = self.rules().all().copied().collect();
        let mut found = self.lent.lock().report();
        for device in &mut found {
            let kind = if device.kind == "b" { DeviceKind::Block } else { DeviceKind::Character };
            let identity = Identity { kind, major: device.major, minor: device.minor };
            device.access = granted(&rules, identity).to_string();
        }
        (found, rules.iter().map(ToString::to_string).collect())
    }
}

/// Whether a rule is for that device and no other.
fn names(rule: &Rule, node: &DeviceNode) -> bool {
    (rule.kind, rule.major, rule.minor) == (Some(node.kind), Some(node.major), Some(node.minor))
}

/// The rules of a spec that is the guest's, and those every container has.
fn rules_of(spec: &Spec) -> Result<Vec<Rule>> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    Ok(Rule::parse_all(rules)?.into_iter().chain(default_rules()).collect())
}

impl From<RuleError> for Fault {
    fn from(error: RuleError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::lent::tests::{disks, function};
    use crate::device::rule::Access;

    fn empty() -> Devices {
        Devices::new(Lent::default(), &serde_json::from_str(r#"{"ociVersion": "1.1.0"}"#).unwrap()).unwrap()
    }

    /// Two disks whose numbers are exchanged here.
    fn devices() -> Devices {
        let lent = disks(&[("/dev/a", 0, 16), ("/dev/b", 16, 0)]);
        let spec = lent.with_rules(&[]).unwrap();
        Devices::new(lent, &spec).unwrap()
    }

    fn rules(json: serde_json::Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(json).unwrap()
    }

    /// Puts rules in force without a kernel.
    fn enforce(devices: &Devices, rules: Rules) {
        let program = std::fs::File::open("/dev/null").unwrap().into();
        *devices.in_force.lock() = Some(Enforced { rules, program });
    }

    fn plug(devices: &Devices, mut batch: Batch) -> Vec<String> {
        let made = devices.admit(&mut batch).unwrap();
        enforce(devices, devices.rules_with(&batch));
        devices.add(batch);
        made.iter().map(|node| node.path.display().to_string()).collect()
    }

    fn unplug(devices: &Devices, entry: &str, host_address: &str) -> Vec<String> {
        let (entry, host_pci_address) = (entry.to_owned(), host_address.to_owned());
        let leaving = devices.leaving(&[PluggedDevice { entry, host_pci_address, ..Default::default() }]);
        enforce(devices, devices.rules_without(&leaving));
        devices.forget(&leaving);
        leaving.nodes.iter().map(|node| node.path.display().to_string()).collect()
    }

    fn shown(devices: &Devices) -> Vec<String> {
        devices.report().1
    }

    #[test]
    fn rules_of_an_update_are_the_hosts_and_become_the_guests() {
        let update = rules(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 254, "minor": 0, "access": "r"},
        ]));
        let rules = rules_of(&devices().lent.lock().with_rules(&update).unwrap()).unwrap();
        let may = |minor| granted(&rules, Identity { kind: DeviceKind::Block, major: 254, minor });
        assert_eq!(may(16), Access::READ.with(Access::MKNOD), "A, which is 254:0 on the host");
        assert_eq!(may(0), Access::MKNOD, "B");
    }

    #[test]
    fn too_many_rules_are_refused() {
        let rule = serde_json::json!({"allow": true});
        let spec = devices().lent.lock().with_rules(&rules(vec![rule; MAX_RULES].into())).unwrap();
        assert!(matches!(devices().load(&spec), Err(Fault::InvalidArgument(_))));
    }

    #[test]
    fn a_disk_that_was_plugged_in_follows_rules_of_an_update_and_is_forgotten() {
        let devices = devices();
        let linux = serde_json::json!({
            "devices": [{"path": "/dev/c", "type": "b", "major": 254, "minor": 3, "fileMode": 0o600, "gid": 6}],
            "resources": {"devices": [{"allow": true, "type": "b", "major": 254, "minor": 3, "access": "r"}]},
        });
        let batch = Batch::of(disks(&[("/dev/c", 3, 32)]), &linux).unwrap();
        assert_eq!((batch.nodes().next().unwrap().0.mode, batch.nodes().next().unwrap().0.gid), (0o600, 6));
        assert_eq!(plug(&devices, batch), ["/dev/c"]);
        assert_eq!(shown(&devices), ["allow b 254:32 r"]);
        let again = Batch::of(
            disks(&[("/dev/d", 3, 32)]),
            &serde_json::json!({
                "devices": [{"path": "/dev/d", "type": "b", "major": 254, "minor": 3}],
            }),
        );
        let error = devices.admit(&mut again.unwrap()).unwrap_err().to_string();
        assert!(error.contains("/dev/d") && error.contains("/dev/c"), "{error}");

        let update = rules(serde_json::json!([
            {"allow": true, "type": "b", "major": 254, "minor": 3, "access": "rw"},
        ]));
        let spec = devices.lent.lock().with_rules(&update).unwrap();
        enforce(&devices, Rules { own: rules_of(&spec).unwrap(), plugged: Vec::new() });
        let found = devices.report().0;
        let found = found.iter().find(|found| found.entry == "/dev/c").unwrap();
        assert_eq!((found.access.as_str(), found.pci_path.as_str()), ("rwm", "05.0"));
        assert_eq!(unplug(&devices, "/dev/a", ""), [""; 0], "what the spec has stays");
        assert_eq!(unplug(&devices, "/dev/c", ""), ["/dev/c"]);
        assert!(shown(&devices).iter().all(|rule| !rule.contains("254:32")), "{:?}", shown(&devices));
        assert_eq!(devices.report().0.len(), 2);
    }

    #[test]
    fn what_two_functions_share_goes_with_the_last() {
        let devices = empty();
        let group = serde_json::json!({
            "devices": [{"path": "/dev/vfio/12", "type": "c", "major": 243, "minor": 4}],
            "resources": {"devices": [{"allow": true, "type": "c", "major": 243, "minor": 4, "access": "rwm"}]},
        });
        let first = Batch::of(function("0000:00:03.0", "05.0", 0), &group).unwrap();
        assert_eq!(plug(&devices, first), ["/dev/vfio/noiommu-0", "/dev/vfio/vfio"]);
        let second = Batch::of(function("0000:00:03.1", "05.1", 1), &group).unwrap();
        assert_eq!(plug(&devices, second), ["/dev/vfio/noiommu-1"]);
        assert_eq!(shown(&devices), ["allow c 243:0 rwm", "allow c 10:196 rwm", "allow c 243:1 rwm"]);
        assert_eq!(unplug(&devices, "/dev/vfio/12", "0000:00:03.0"), ["/dev/vfio/noiommu-0"]);
        assert_eq!(shown(&devices), ["allow c 10:196 rwm", "allow c 243:1 rwm"]);
        assert_eq!(
            unplug(&devices, "/dev/vfio/12", "0000:00:03.1"),
            ["/dev/vfio/noiommu-1", "/dev/vfio/vfio"]
        );
        assert_eq!(shown(&devices), [""; 0]);
        assert_eq!(devices.report().0, []);
    }

    #[test]
    fn a_device_of_the_guests_own_leaves_what_the_container_was_made_with() {
        let devices = empty();
        enforce(&devices, Rules { own: default_rules().collect(), plugged: Vec::new() });
        let before = shown(&devices);
        let null = serde_json::json!({
            "devices": [{"path": "/dev/nothing", "type": "c", "major": 1, "minor": 3}],
            "resources": {"devices": [{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]},
        });
        assert_eq!(plug(&devices, Batch::of(Lent::of(&null), &null).unwrap()), ["/dev/nothing"]);
        assert_eq!(unplug(&devices, "/dev/nothing", ""), ["/dev/nothing"]);
        assert_eq!(shown(&devices), before);

        // One that is there neither comes nor goes.
        let lent = Lent::of(&null);
        let spec = lent.with_rules(&[]).unwrap();
        let devices = Devices::new(lent, &spec).unwrap();
        let before = devices.report().0;
        assert_eq!(plug(&devices, Batch::of(Lent::of(&null), &null).unwrap()), [""; 0]);
        assert_eq!(unplug(&devices, "/dev/nothing", ""), [""; 0]);
        assert_eq!((before.len(), devices.report().0), (1, before));
    }

    proptest::proptest! {
        /// Whatever comes and goes, in whatever order: what is gone has left nothing, and what is there has its rules.
        #[test]
        fn what_comes_and_goes_leaves_things_as_they_were(
            steps in proptest::collection::vec((0..4usize, proptest::bool::ANY), 1..40)
        ) {
            let devices = devices();
            enforce(&devices, Rules { own: default_rules().collect(), plugged: Vec::new() });
            let before = (shown(&devices), devices.report().0);
            let mut there = [false; 4];
            let batch = |which: usize| match which {
                0 | 1 => {
                    let minor = i64::try_from(which).unwrap();
                    let group = serde_json::json!({
                        "devices": [{"path": "/dev/vfio/12", "type": "c", "major": 243, "minor": 4}],
                    });
                    let (host, guest) = (format!("0000:00:03.{which}"), format!("07.{which}"));
                    (Batch::of(function(&host, &guest, minor), &group).unwrap(), "/dev/vfio/12", host)
                }
                _ => {
                    let (path, minor) = if which == 2 { ("/dev/c", 3) } else { ("/dev/d", 4) };
                    let disk = serde_json::json!({
                        "devices": [{"path": path, "type": "b", "major": 254, "minor": minor}],
                    });
                    (Batch::of(disks(&[(path, minor, minor * 16)]), &disk).unwrap(), path, String::new())
                }
            };
            for (which, comes) in steps {
                let (mut batch, entry, address) = batch(which);
                match (comes, there[which]) {
                    (true, false) => {
                        let nodes: Vec<_> = batch.nodes().map(|(node, _)| node.identity()).collect();
                        plug(&devices, batch);
                        let rules: Vec<Rule> = devices.rules().all().copied().collect();
                        for node in nodes {
                            proptest::prop_assert_eq!(granted(&rules, node), Access::ALL);
                        }
                    }
                    (false, _) => {
                        let gone = unplug(&devices, entry, &address);
                        proptest::prop_assert_eq!(gone.is_empty(), !there[which]);
                    }
                    // Twice is once too often: the host sees to it for functions, and to all of it the agent.
                    (true, true) => proptest::prop_assert!(devices.admit(&mut batch).is_err()),
                }
                there[which] = comes;
            }
            for which in 0..4 {
                let (_, entry, address) = batch(which);
                unplug(&devices, entry, &address);
            }
            proptest::prop_assert_eq!((shown(&devices), devices.report().0), before);
        }
    }
}
