//! The nodes in the guest for each entry of `linux.devices`: none, one or several. Pure.
//!
//! OCI runtime-spec config-linux.md#devices. An entry is identified by its type and number on the host, so two
//! entries for one device have the same nodes. [`HostEntries`] is made from the host's spec, is complete or an error,
//! and is the table in which entries and rules are looked up: nothing is looked up by a number of the guest.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceBuilder;
use oci_spec::runtime::LinuxDeviceType;

use super::DeviceKind;
use super::Node;
use super::RewriteError;
use super::rule::Identity;
use super::standard;

/// A device of the host that is assigned for an entry of `linux.devices`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedDevice {
    /// The entry's path.
    pub entry: PathBuf,
    /// The entry's identity on the host.
    pub host: Identity,
    /// Its PCI path in the guest: slot and function on each bridge's bus. Empty if it was located by a serial.
    pub pci_path: String,
    /// Its nodes in the guest.
    pub nodes: Nodes,
}

/// The nodes of an assigned device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nodes {
    /// A disk's node, which has the entry's path in the container.
    Disk(Node),
    /// A PCI function's nodes, which have their paths in the guest also in the container.
    Function {
        /// The function's address on the host; empty if the host did not send it.
        host_address: String,
        /// The function's address in the guest.
        guest_address: Option<String>,
        /// The nodes of its driver or of its VFIO group.
        own: Vec<Node>,
        /// The node that every VFIO function's users need as well: `/dev/vfio/vfio`.
        shared: Option<Node>,
    },
}

impl AssignedDevice {
    /// The host's address of a PCI function; empty for a disk.
    pub fn host_address(&self) -> &str {
        match &self.nodes {
            Nodes::Disk(_) => "",
            Nodes::Function { host_address, .. } => host_address,
        }
    }

    /// Refuses a disk of another type than the entry's, and a device whose nodes contradict those of another assignment
    /// for the same device of the host.
    fn check(&self, others: &[Self]) -> Result<(), RewriteError> {
        let agrees = |other: &&Self| match (&self.nodes, &other.nodes) {
            (Nodes::Disk(one), Nodes::Disk(other)) => one == other,
            (Nodes::Function { .. }, Nodes::Function { .. }) => true,
            _ => false,
        };
        match &self.nodes {
            Nodes::Disk(disk) if disk.kind != self.host.kind => {
                return Err(RewriteError::OtherKind(self.entry.clone()));
            }
            _ => {}
        }
        let mut same = others.iter().filter(|other| other.host == self.host);
        same.find(|other| !agrees(other)).map_or(Ok(()), |other| {
            // The message does not depend on the order of the devices.
            let mut paths = [other.entry.clone(), self.entry.clone()];
            paths.sort();
            let [first, second] = paths;
            Err(RewriteError::Split { first, second })
        })
    }

    pub(super) fn guest_nodes(&self) -> Vec<GuestNode> {
        let node = |node: &Node, at_entry, origin| GuestNode {
            node: node.clone(),
            at_entry,
            origin,
            pci_path: self.pci_path.clone(),
        };
        match &self.nodes {
            Nodes::Disk(disk) => vec![node(disk, true, Origin::Assigned)],
            Nodes::Function { own, shared, .. } => {
                let own = own.iter().map(|own| node(own, false, Origin::Assigned));
                own.chain(shared.iter().map(|shared| node(shared, false, Origin::Shared))).collect()
            }
        }
    }
}

/// The origin of a node of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// It belongs to an assigned device, and leaves the guest with it.
    Assigned,
    /// It serves an assigned device, but is always in the guest.
    Shared,
    /// It is a standard device's.
    Standard,
}

/// A node of the guest that serves an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNode {
    /// The node in the guest.
    pub node: Node,
    /// In the container it has the entry's path; otherwise its own.
    pub at_entry: bool,
    /// Its origin.
    pub origin: Origin,
    /// The PCI path of its device; empty if it is unknown.
    pub pci_path: String,
}

impl GuestNode {
    /// Its path in the container, for the entry whose path is `entry`.
    pub fn path<'a>(&'a self, entry: &'a Path) -> &'a Path {
        if self.at_entry { entry } else { &self.node.path }
    }

    /// The entry with the guest's numbers that replaces `entry`.
    fn entry(&self, entry: &LinuxDevice) -> LinuxDevice {
        let Node { kind, major, minor, path } = &self.node;
        if self.at_entry {
            let mut entry = entry.clone();
            entry.set_major((*major).into()).set_minor((*minor).into());
            return entry;
        }
        let typ = match kind {
            DeviceKind::Block => LinuxDeviceType::B,
            DeviceKind::Character => LinuxDeviceType::C,
        };
        let entry = LinuxDeviceBuilder::default().path(path).typ(typ).major(*major).minor(*minor);
        entry.file_mode(0o660u32).uid(0u32).gid(0u32).build().expect("every field of a device has a default")
    }
}

/// An entry of the guest's spec with its node; none for a fifo.
pub(crate) type Rewritten<'a> = (LinuxDevice, Option<&'a GuestNode>);

/// The nodes in the guest for each device of the host that has an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostEntries(BTreeMap<Identity, Vec<GuestNode>>);

impl HostEntries {
    /// From the host's entries and the devices assigned for them. An entry that neither one of `devices` nor a standard
    /// device serves is an error, and so is a device without an entry.
    pub fn of(entries: &[LinuxDevice], devices: &[AssignedDevice]) -> Result<Self, RewriteError> {
        let mut known = Self::default();
        for device in devices {
            device.check(devices)?;
            known.0.entry(device.host).or_default().extend(device.guest_nodes());
            let mut at_path = entries.iter().filter(|entry| *entry.path() == device.entry).peekable();
            if at_path.peek().is_none() {
                return Err(RewriteError::NoEntry(device.entry.clone()));
            }
            if let Some(other) = at_path.find(|entry| identity(entry) != Some(device.host)) {
                let (path, expected) = (device.entry.clone(), device.host);
                return Err(RewriteError::OtherIdentity { path, found: identity(other), expected });
            }
        }
        for entry in entries.iter().filter(|entry| entry.typ() != LinuxDeviceType::P) {
            let host = identity(entry);
            if host.is_some_and(|host| known.0.contains_key(&host)) {
                continue;
            }
            let own = host.and_then(|host| Some((host, standard::path(host)?)));
            let (host, path) =
                own.ok_or_else(|| RewriteError::NotAssigned { path: entry.path().clone(), found: host })?;
            let Identity { kind, major, minor } = host;
            let node = Node { path: path.to_owned(), kind, major, minor };
            let (origin, pci_path) = (Origin::Standard, String::new());
            known.0.insert(host, vec![GuestNode { node, at_entry: true, origin, pci_path }]);
        }
        known.settle();
        Ok(known)
    }

    /// Sorts the nodes of each device and removes repetitions, so that the order of the devices does not matter.
    fn settle(&mut self) {
        for nodes in self.0.values_mut() {
            let key = |GuestNode { node, pci_path, .. }: &GuestNode| {
                (node.path.clone(), node.kind, node.major, node.minor, pci_path.clone())
            };
            nodes.sort_by_key(key);
            nodes.dedup_by(|later, first| later.node == first.node);
        }
    }

    /// Each device of the host with its nodes in the guest.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Identity, &[GuestNode])> {
        self.0.iter().map(|(host, nodes)| (*host, &nodes[..]))
    }

    /// The nodes of a device of the host; none if no entry is for it.
    pub(super) fn get(&self, host: Identity) -> Option<&[GuestNode]> {
        self.0.get(&host).map(Vec::as_slice)
    }

    /// The nodes of an entry; none for a fifo.
    pub fn nodes(&self, entry: &LinuxDevice) -> &[GuestNode] {
        identity(entry).and_then(|host| self.get(host)).unwrap_or_default()
    }

    /// These entries merged with others.
    pub fn merged(mut self, others: Self) -> Self {
        for (host, nodes) in others.0 {
            self.0.entry(host).or_default().extend(nodes);
        }
        self.settle();
        self
    }

    /// Rewrites entries with the guest's numbers, in the order of the host's and without repetitions.
    pub(crate) fn rewrite(&self, entries: &[LinuxDevice]) -> Result<Vec<Rewritten<'_>>, RewriteError> {
        let mut rewritten: Vec<Rewritten<'_>> = Vec::new();
        for entry in entries {
            let guests: Vec<Rewritten<'_>> = if entry.typ() == LinuxDeviceType::P {
                vec![(entry.clone(), None)]
            } else {
                self.nodes(entry).iter().map(|node| (node.entry(entry), Some(node))).collect()
            };
            for (new, node) in guests {
                match rewritten.iter().find(|(earlier, _)| earlier.path() == new.path()) {
                    None => rewritten.push((new, node)),
                    Some((earlier, _)) if identity(earlier) == identity(&new) => {}
                    Some(_) => return Err(RewriteError::TwoDevices(new.path().clone())),
                }
            }
        }
        Ok(rewritten)
    }
}

/// The identity of an entry; none for a fifo, and for a number that no device can have.
pub(super) fn identity(entry: &LinuxDevice) -> Option<Identity> {
    let kind = match entry.typ() {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::A | LinuxDeviceType::P => return None,
    };
    Some(Identity { kind, major: entry.major().try_into().ok()?, minor: entry.minor().try_into().ok()? })
}
