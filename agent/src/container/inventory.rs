//! The devices of one container as a value: those it was created with, those plugged in since, and the rules. Pure.
//!
//! [`Inventory::plug`], [`Inventory::unplug`] and [`Inventory::with_rules`] return a new inventory, or an error and
//! leave the old one to go on with. The guest's rules are derived from the host's and all entries anew each time, and
//! are changed nowhere; every function that makes an inventory uses the same check ([`Inventory::checked`]).

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use kiai_protocol::agent::ContainerDevice;
use kiai_protocol::agent::PluggedDevice;
use oci_spec::runtime::Linux;
use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::LinuxDeviceType;
use oci_spec::runtime::Spec;

use super::plug::is_target;
use crate::device;
use crate::device::AssignedDevice;
use crate::device::DeviceKind;
use crate::device::GuestNode;
use crate::device::HostEntries;
use crate::device::Identity;
use crate::device::Nodes;
use crate::device::Origin;
use crate::device::PciAddresses;
use crate::device::RewriteError;
use crate::device::filter::MAX_RULES;
use crate::device::rule::Rule;
use crate::device::rule::RuleError;
use crate::device::rule::default_rules;
use crate::device::rule::granted;
use crate::fault::Fault;
use crate::fault::Result;
use crate::oci::DeviceNode;

/// Entries of `linux.devices` that are added together, by the spec or by one plug request, with the devices assigned
/// for them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct EntryGroup {
    /// With the host's numbers.
    entries: Vec<LinuxDevice>,
    devices: Vec<AssignedDevice>,
    /// The host's rules for these entries; none if the container's rules apply to them.
    rules: Option<Vec<Rule>>,
}

/// A node with its origin.
type NodeWithOrigin = (DeviceNode, Origin);

impl EntryGroup {
    /// Reads a plug request: `linux` is an OCI `linux` object as JSON with the host's entries and rules, `devices` are
    /// assigned for the entries.
    pub(super) fn new(linux: &[u8], devices: Vec<AssignedDevice>) -> Result<Self> {
        if linux.is_empty() && devices.is_empty() {
            return Ok(Self::default());
        }
        let linux: Linux = serde_json::from_slice(linux)
            .map_err(|error| Fault::InvalidArgument(format!("OCI linux: {error}")))?;
        let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
        let rules = Rule::parse_all(rules.unwrap_or_default())?;
        Ok(Self { entries: linux.devices().clone().unwrap_or_default(), devices, rules: Some(rules) })
    }

    /// The paths of the entries.
    pub(super) fn entries(&self) -> Vec<PathBuf> {
        self.entries.iter().map(|entry| entry.path().clone()).collect()
    }

    fn host_entries(&self) -> Result<HostEntries> {
        Ok(HostEntries::of(&self.entries, &self.devices)?)
    }

    /// The nodes of the entries, without fifos.
    fn nodes(&self) -> Result<Vec<NodeWithOrigin>> {
        let host_entries = self.host_entries()?;
        let rewritten = host_entries.rewrite(&self.entries)?.into_iter();
        let devices = rewritten.filter_map(|(entry, node)| Some((entry, node?.origin)));
        devices.map(|(entry, origin)| Ok((device_node(&entry)?, origin))).collect()
    }

    /// This group without the named devices, and without the entries that only they served.
    fn without(&self, named: &[PluggedDevice]) -> Self {
        let is_named = |entry: &Path, host_address: &str| {
            let mut named = named.iter();
            named.any(|name| {
                Path::new(&name.entry) == entry && name.host_pci_address.eq_ignore_ascii_case(host_address)
            })
        };
        let mut left = self.clone();
        left.devices.retain(|device| !is_named(&device.entry, device.host_address()));
        let serves = |devices: &[AssignedDevice], entry: &LinuxDevice| {
            devices.iter().any(|device| device.entry == *entry.path())
        };
        left.entries.retain(|entry| {
            if serves(&self.devices, entry) {
                serves(&left.devices, entry)
            } else {
                !is_named(entry.path(), "")
            }
        });
        left
    }
}

/// The nodes that unplugging concerns.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unplugged {
    /// Nodes to remove, because no other entry has them.
    pub(super) nodes: Vec<DeviceNode>,
    /// Nodes whose device leaves the guest, so that no process may use it.
    pub(super) assigned: Vec<DeviceNode>,
}

/// All devices of a container, and its rules.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Inventory {
    /// The host's rules for the container: the spec's, or those of the last update.
    host_rules: Vec<Rule>,
    created: EntryGroup,
    /// In the order in which they were plugged in.
    plugged: Vec<EntryGroup>,
    /// The nodes the container was created with.
    created_nodes: BTreeMap<PathBuf, Identity>,
    /// Derived from the rules and entries above.
    rules: Vec<Rule>,
}

impl Inventory {
    /// The inventory of a container that is created with the host's `spec` and with `devices` assigned to it.
    pub(super) fn new(spec: &Spec, devices: Vec<AssignedDevice>) -> Result<Self> {
        let created = EntryGroup { entries: device::entries(spec).to_vec(), devices, rules: None };
        let created_nodes =
            created.nodes()?.into_iter().map(|(node, _)| (node.path.clone(), node.identity())).collect();
        let host_rules = Rule::parse_all(device::rules(spec))?;
        Self { host_rules, created, created_nodes, ..Self::default() }.checked()
    }

    /// `spec`, the host's, with the guest's entries, rules and PCI addresses.
    pub(super) fn write_into(&self, spec: &Spec) -> Result<Spec> {
        let mut spec = device::rewrite(spec, &self.created.devices)?;
        if let Some(process) = spec.process_mut() {
            device::translate_process(process, &self.pci_addresses());
        }
        Ok(spec)
    }

    /// This inventory with the nodes of `spec`, which has entries for devices of the guest's own added.
    pub(super) fn with_guest_entries(mut self, spec: &Spec) -> Result<Self> {
        for entry in device::entries(spec).iter().filter(|entry| is_device(entry)) {
            let node = device_node(entry)?;
            self.created_nodes.insert(node.path.clone(), node.identity());
        }
        Ok(self)
    }

    /// This inventory with other rules of the host, which apply to every device of the container.
    pub(super) fn with_rules(&self, rules: &[LinuxDeviceCgroup]) -> Result<Self> {
        let mut after = self.clone();
        after.host_rules = Rule::parse_all(rules)?;
        for group in &mut after.plugged {
            group.rules = None;
        }
        after.checked()
    }

    /// This inventory with a group plugged in, and the nodes to make for it. A device that would have two paths is
    /// refused, because one rule would apply to both. A standard device that the container was created with is not
    /// plugged in, and so not unplugged.
    pub(super) fn plug(&self, mut new: EntryGroup) -> Result<(Self, Vec<DeviceNode>)> {
        let mut known = self.created_nodes.clone();
        known.extend(self.plugged_nodes()?.into_iter().map(|(node, _)| (node.path.clone(), node.identity())));
        let mut to_make = Vec::new();
        for (node, origin) in new.nodes()? {
            let (path, identity, lasts) = (&node.path, node.identity(), origin != Origin::Assigned);
            if !is_target(path) {
                let reason = "the path is not an absolute path without `..`";
                return Err(Fault::InvalidArgument(format!("device {path:?}: {reason}")));
            }
            match known.iter().find(|(other, had)| *other == path || (!lasts && **had == identity)) {
                Some((other, had)) if lasts && other == path && *had == identity => {}
                Some((other, _)) => {
                    let reason = format!("the container has this device or this path already, as {other:?}");
                    return Err(Fault::AlreadyExists(format!("device {path:?}: {reason}")));
                }
                None => {
                    known.insert(path.clone(), identity);
                    to_make.push(node);
                }
            }
        }
        let devices = &new.devices;
        new.entries.retain(|entry| {
            let is_made = is_device(entry) && self.created_nodes.contains_key(entry.path());
            !is_made || devices.iter().any(|device| device.entry == *entry.path())
        });
        let mut after = self.clone();
        after.plugged.push(new);
        after = after.checked()?;
        after.plugged.retain(|group| !group.entries.is_empty());
        Ok((after, to_make))
    }

    /// This inventory without those of the `named` devices that were plugged in, and the nodes that this concerns. A
    /// rule of an update that names one of them is removed with it, because another device may get the number.
    pub(super) fn unplug(&self, named: &[PluggedDevice]) -> Result<(Self, Unplugged)> {
        let mut after = self.clone();
        after.plugged = self.plugged.iter().map(|group| group.without(named)).collect();
        after.plugged.retain(|group| !group.entries.is_empty());
        let left = after.ruled_by_container();
        let gone: Vec<Identity> =
            self.ruled_by_container().into_iter().filter(|host| !left.contains(host)).collect();
        after.host_rules.retain(|rule| !gone.iter().any(|host| rule.names(*host)));
        if after.host_rules.is_empty() && !self.host_rules.is_empty() {
            // An empty list would not mean that no device is allowed.
            after.host_rules.push(Rule::DENY_ALL);
        }

        let left = after.plugged_nodes()?;
        let mut unplugged = Unplugged::default();
        for (node, origin) in self.plugged_nodes()? {
            let stays = |(other, _): &NodeWithOrigin| other.path == node.path;
            if left.iter().any(stays) || unplugged.nodes.contains(&node) {
                continue;
            }
            if origin == Origin::Assigned {
                unplugged.assigned.push(node.clone());
            }
            if !self.created_nodes.contains_key(&node.path) {
                unplugged.nodes.push(node);
            }
        }
        Ok((after.checked()?, unplugged))
    }

    /// The one check, which derives the guest's rules: every entry is served by an assigned or standard device, every
    /// rule is for a device of the container, and the rules are few enough to be enforced.
    fn checked(mut self) -> Result<Self> {
        let mut host_entries = HostEntries::default();
        let mut plugged = Vec::new();
        for group in self.all() {
            match &group.rules {
                None => host_entries = host_entries.merged(group.host_entries()?),
                Some(rules) => plugged.extend(device::derive_plugged(rules, &group.host_entries()?)?),
            }
        }
        let mut rules = device::derive(&self.host_rules, &host_entries)?;
        rules.extend(default_rules());
        for rule in plugged {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        if rules.len() > MAX_RULES {
            return Err(Fault::InvalidArgument(format!("more than {MAX_RULES} device rules")));
        }
        self.rules = rules;
        Ok(self)
    }

    /// The guest's rules; the last one that matches decides.
    pub(super) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The addresses of its PCI functions on the host and in the guest.
    pub(super) fn pci_addresses(&self) -> PciAddresses {
        let functions = self.assigned().filter_map(|device| match &device.nodes {
            Nodes::Function { host_address, guest_address, .. } => {
                Some((host_address, guest_address.as_ref()?))
            }
            Nodes::Disk(_) => None,
        });
        let known = functions.filter(|(host, _)| !host.is_empty());
        known.map(|(host, guest)| (host.clone(), guest.clone())).collect()
    }

    /// The report for the host: each device, and the rules in force.
    pub(super) fn report(&self) -> Result<(Vec<ContainerDevice>, Vec<String>)> {
        let mut host_entries = HostEntries::default();
        for group in self.all() {
            host_entries = host_entries.merged(group.host_entries()?);
        }
        let mut found: Vec<ContainerDevice> = Vec::new();
        for entry in self.all().flat_map(|group| &group.entries) {
            for node in host_entries.nodes(entry) {
                let device = self.found(entry.path(), node);
                if found.iter().all(|other| other.container_path != device.container_path) {
                    found.push(device);
                }
            }
        }
        Ok((found, self.rules.iter().map(ToString::to_string).collect()))
    }

    fn found(&self, entry: &Path, node: &GuestNode) -> ContainerDevice {
        let identity = node.node.identity();
        let assigned = node.origin != Origin::Standard;
        ContainerDevice {
            entry: entry.display().to_string(),
            container_path: node.path(entry).display().to_string(),
            kind: identity.kind.letter().to_string(),
            major: identity.major.into(),
            minor: identity.minor.into(),
            access: granted(&self.rules, identity).to_string(),
            node: if assigned { node.node.path.display().to_string() } else { String::new() },
            pci_path: node.pci_path.clone(),
            ..Default::default()
        }
    }

    fn all(&self) -> impl Iterator<Item = &EntryGroup> {
        std::iter::once(&self.created).chain(&self.plugged)
    }

    fn assigned(&self) -> impl Iterator<Item = &AssignedDevice> {
        self.all().flat_map(|group| &group.devices)
    }

    /// The host identities of assigned devices to which the container's rules apply.
    fn ruled_by_container(&self) -> Vec<Identity> {
        let groups = self.all().filter(|group| group.rules.is_none());
        groups.flat_map(|group| &group.devices).map(|device| device.host).collect()
    }

    fn plugged_nodes(&self) -> Result<Vec<NodeWithOrigin>> {
        let nodes: Result<Vec<_>> = self.plugged.iter().map(EntryGroup::nodes).collect();
        Ok(nodes?.into_iter().flatten().collect())
    }
}

fn is_device(entry: &LinuxDevice) -> bool {
    !matches!(entry.typ(), LinuxDeviceType::A | LinuxDeviceType::P)
}

/// The node that an entry with the guest's numbers asks for.
fn device_node(entry: &LinuxDevice) -> Result<DeviceNode> {
    let wrong = |reason: &str| Fault::InvalidArgument(format!("device {:?}: {reason}", entry.path()));
    let kind = match entry.typ() {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::A | LinuxDeviceType::P => return Err(wrong("its type is not b, c or u")),
    };
    let number = |number: i64| u32::try_from(number).map_err(|_| wrong("a device number has 32 bits"));
    let (major, minor) = (number(entry.major())?, number(entry.minor())?);
    let mode = entry.file_mode().unwrap_or(0o666) & 0o777;
    let (uid, gid) = (entry.uid().unwrap_or(0), entry.gid().unwrap_or(0));
    Ok(DeviceNode { path: entry.path().clone(), kind, major, minor, mode, uid, gid })
}

impl From<RuleError> for Fault {
    fn from(error: RuleError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

impl From<RewriteError> for Fault {
    fn from(error: RewriteError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

#[cfg(test)]
mod tests;
