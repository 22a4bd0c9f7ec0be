//! The devices of one container as a value: what it was made with, what was attached since, and the rules. Pure.
//!
//! [`Inventory::attach`], [`Inventory::detach`] and [`Inventory::with_rules`] return a new inventory, or an error and
//! leave the old one to go on with. The guest's rules are derived from the host's and all rows anew each time, and are
//! changed nowhere; whatever makes an inventory goes through the same check ([`Inventory::checked`]).

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

use super::plug::is_place;
use crate::device;
use crate::device::AssignedDevice;
use crate::device::DeviceKind;
use crate::device::GuestNode;
use crate::device::HostRows;
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

/// Entries that come together, and the devices assigned for them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Attachment {
    /// As the host wrote them.
    entries: Vec<LinuxDevice>,
    devices: Vec<AssignedDevice>,
    /// The host's rules for these entries; none where the container's are for them too.
    rules: Option<Vec<Rule>>,
}

/// A node, and where it comes from.
type Placed = (DeviceNode, Origin);

impl Attachment {
    /// `linux` is OCI JSON with the host's entries and rules; `devices` were found for the entries.
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

    /// Paths of the entries.
    pub(super) fn entries(&self) -> Vec<PathBuf> {
        self.entries.iter().map(|entry| entry.path().clone()).collect()
    }

    fn rows(&self) -> Result<HostRows> {
        Ok(HostRows::of(&self.entries, &self.devices)?)
    }

    /// Its nodes, but for fifos.
    fn nodes(&self) -> Result<Vec<Placed>> {
        let rows = self.rows()?;
        let rewritten = rows.rewrite(&self.entries)?.into_iter();
        let devices = rewritten.filter_map(|(row, node)| Some((row, node?.origin)));
        devices.map(|(row, origin)| Ok((device_node(&row)?, origin))).collect()
    }

    /// Without the devices of these names, and the entries that only they served.
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

/// What is to be done in the container when devices are detached.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Detached {
    /// Nodes to remove: nothing else has them.
    pub(super) nodes: Vec<DeviceNode>,
    /// Nodes whose device is gone from the guest afterwards, so that nobody may have a use of it.
    pub(super) assigned: Vec<DeviceNode>,
}

/// Everything a container has of devices.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Inventory {
    /// The host's rules for the container: the spec's, or those of the last update.
    host_rules: Vec<Rule>,
    created: Attachment,
    /// In the order in which they came.
    attached: Vec<Attachment>,
    /// Nodes the container was made with.
    made: BTreeMap<PathBuf, Identity>,
    /// Derived from the rules and rows above.
    rules: Vec<Rule>,
}

impl Inventory {
    /// Of a container that is to be made with `spec`, which is the host's, and with `devices` assigned to it.
    pub(super) fn new(spec: &Spec, devices: Vec<AssignedDevice>) -> Result<Self> {
        let created = Attachment { entries: device::entries(spec).to_vec(), devices, rules: None };
        let made =
            created.nodes()?.into_iter().map(|(node, _)| (node.path.clone(), node.identity())).collect();
        let host_rules = Rule::parse_all(device::rules(spec))?;
        Self { host_rules, created, made, ..Self::default() }.checked()
    }

    /// The host's spec with the guest's entries, rules and PCI addresses.
    pub(super) fn write_into(&self, spec: &Spec) -> Result<Spec> {
        let mut spec = device::rewrite(spec, &self.created.devices)?;
        if let Some(process) = spec.process_mut() {
            device::translate_process(process, &self.pci_addresses());
        }
        Ok(spec)
    }

    /// With the nodes of `spec`, which has further entries of the guest's.
    pub(super) fn with_guest_entries(mut self, spec: &Spec) -> Result<Self> {
        for entry in device::entries(spec).iter().filter(|entry| is_device(entry)) {
            let node = device_node(entry)?;
            self.made.insert(node.path.clone(), node.identity());
        }
        Ok(self)
    }

    /// With other rules of the host, which are for all that the container has.
    pub(super) fn with_rules(&self, rules: &[LinuxDeviceCgroup]) -> Result<Self> {
        let mut after = self.clone();
        after.host_rules = Rule::parse_all(rules)?;
        for attachment in &mut after.attached {
            attachment.rules = None;
        }
        after.checked()
    }

    /// With what comes to it, and the nodes to make for that. A device that would come to have two paths is refused, as
    /// its rule is for both. A standard device that the container was made with does not come, and so does not go.
    pub(super) fn attach(&self, mut new: Attachment) -> Result<(Self, Vec<DeviceNode>)> {
        let mut known = self.made.clone();
        known
            .extend(self.attached_nodes()?.into_iter().map(|(node, _)| (node.path.clone(), node.identity())));
        let mut to_make = Vec::new();
        for (node, origin) in new.nodes()? {
            let (path, identity, lasts) = (&node.path, node.identity(), origin != Origin::Assigned);
            if !is_place(path) {
                let reason = "its path is not an absolute one without `..`";
                return Err(Fault::InvalidArgument(format!("device {path:?}: {reason}")));
            }
            match known.iter().find(|(other, had)| *other == path || (!lasts && **had == identity)) {
                Some((other, had)) if lasts && other == path && *had == identity => {}
                Some((other, _)) => {
                    let reason = format!("the container has it, or another, as {other:?}");
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
            let is_made = is_device(entry) && self.made.contains_key(entry.path());
            !is_made || devices.iter().any(|device| device.entry == *entry.path())
        });
        let mut after = self.clone();
        after.attached.push(new);
        after = after.checked()?;
        after.attached.retain(|attachment| !attachment.entries.is_empty());
        Ok((after, to_make))
    }

    /// Without those of `named` that were attached, and what is to be done for that. A rule of an update that names one
    /// of them goes with it: the number will be another device's.
    pub(super) fn detach(&self, named: &[PluggedDevice]) -> Result<(Self, Detached)> {
        let mut after = self.clone();
        after.attached = self.attached.iter().map(|attachment| attachment.without(named)).collect();
        after.attached.retain(|attachment| !attachment.entries.is_empty());
        let left = after.ruled_by_container();
        let gone: Vec<Identity> =
            self.ruled_by_container().into_iter().filter(|host| !left.contains(host)).collect();
        after.host_rules.retain(|rule| !gone.iter().any(|host| rule.names(*host)));
        if after.host_rules.is_empty() && !self.host_rules.is_empty() {
            // A list of rules that allows nothing, which no list at all does not mean.
            after.host_rules.push(Rule::DENY_ALL);
        }

        let left = after.attached_nodes()?;
        let mut detached = Detached::default();
        for (node, origin) in self.attached_nodes()? {
            let stays = |(other, _): &Placed| other.path == node.path;
            if left.iter().any(stays) || detached.nodes.contains(&node) {
                continue;
            }
            if origin == Origin::Assigned {
                detached.assigned.push(node.clone());
            }
            if !self.made.contains_key(&node.path) {
                detached.nodes.push(node);
            }
        }
        Ok((after.checked()?, detached))
    }

    /// The one check: every entry is served or standard, every rule names a device the container has, and the rules
    /// are few enough to be enforced. Derives the guest's rules.
    fn checked(mut self) -> Result<Self> {
        let mut rows = HostRows::default();
        let mut attached = Vec::new();
        for attachment in self.all() {
            match &attachment.rules {
                None => rows = rows.merged(attachment.rows()?),
                Some(rules) => attached.extend(device::derive_attached(rules, &attachment.rows()?)?),
            }
        }
        let mut rules = device::derive(&self.host_rules, &rows)?;
        rules.extend(default_rules());
        for rule in attached {
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

    /// The guest's rules, the last one that fits deciding.
    pub(super) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Where its PCI functions are, on the host and here.
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

    /// What the host is told: each device, and the rules.
    pub(super) fn report(&self) -> Result<(Vec<ContainerDevice>, Vec<String>)> {
        let mut rows = HostRows::default();
        for attachment in self.all() {
            rows = rows.merged(attachment.rows()?);
        }
        let mut found: Vec<ContainerDevice> = Vec::new();
        for entry in self.all().flat_map(|attachment| &attachment.entries) {
            for node in rows.nodes(entry) {
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

    fn all(&self) -> impl Iterator<Item = &Attachment> {
        std::iter::once(&self.created).chain(&self.attached)
    }

    fn assigned(&self) -> impl Iterator<Item = &AssignedDevice> {
        self.all().flat_map(|attachment| &attachment.devices)
    }

    /// The assigned devices, as on the host, that the container's rules are for.
    fn ruled_by_container(&self) -> Vec<Identity> {
        let attachments = self.all().filter(|attachment| attachment.rules.is_none());
        attachments.flat_map(|attachment| &attachment.devices).map(|device| device.host).collect()
    }

    fn attached_nodes(&self) -> Result<Vec<Placed>> {
        let nodes: Result<Vec<_>> = self.attached.iter().map(Attachment::nodes).collect();
        Ok(nodes?.into_iter().flatten().collect())
    }
}

fn is_device(entry: &LinuxDevice) -> bool {
    !matches!(entry.typ(), LinuxDeviceType::A | LinuxDeviceType::P)
}

/// The node that an entry of the guest asks for.
fn device_node(entry: &LinuxDevice) -> Result<DeviceNode> {
    let wrong = |reason: &str| Fault::InvalidArgument(format!("device {:?}: {reason}", entry.path()));
    let kind = match entry.typ() {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::A | LinuxDeviceType::P => return Err(wrong("it is no device")),
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
