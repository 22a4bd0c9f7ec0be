//! What the rows of `linux.devices` become in the guest: each none, one or several nodes. Pure.
//!
//! OCI runtime-spec config-linux.md#devices. A row is known by its identity on the host, its type and number, so two
//! rows of one device become the same nodes. [`HostRows`] is made from the spec as the host wrote it, is complete or
//! an error, and is what entries and rules are looked up in: nothing is looked up by a number of the guest.

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

/// A device of the host that this guest has for an entry of `linux.devices`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedDevice {
    /// The entry's path.
    pub entry: PathBuf,
    /// The entry's identity on the host.
    pub host: Identity,
    /// Where it is on the guest's bus: slot and function on each bridge's bus. Empty where nobody said.
    pub pci_path: String,
    /// The guest's nodes of it.
    pub nodes: Nodes,
}

/// The nodes of an assigned device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nodes {
    /// A disk's, at the entry's path in the container.
    Disk(Node),
    /// A PCI function's, at the paths they have in the guest.
    Function {
        /// The function's address on the host; empty where nobody said.
        host_address: String,
        /// The function's address in the guest.
        guest_address: Option<String>,
        /// The nodes of its driver or of its VFIO group.
        own: Vec<Node>,
        /// A node that its users need besides, and that is the same for every function: `/dev/vfio/vfio`.
        shared: Option<Node>,
    },
}

impl AssignedDevice {
    /// Of a PCI function, its address on the host; of others, empty.
    pub fn host_address(&self) -> &str {
        match &self.nodes {
            Nodes::Disk(_) => "",
            Nodes::Function { host_address, .. } => host_address,
        }
    }

    /// Whether it can be one device of the guest with those of `others` that are one with it on the host.
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
            // Named in one order whatever that of the devices.
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

/// Where a node of the guest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A device assigned to the container has brought it, and takes it along.
    Assigned,
    /// It serves an assigned device, and is the guest's whatever is assigned.
    Shared,
    /// Every guest has it.
    Standard,
}

/// A node that a row becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNode {
    /// The node in the guest.
    pub node: Node,
    /// It is at the row's path in the container; else at its own.
    pub at_entry: bool,
    /// Where it comes from.
    pub origin: Origin,
    /// Where its device is on the bus, if that is known.
    pub pci_path: String,
}

impl GuestNode {
    /// Its path in a container for the row at `entry`.
    pub fn path<'a>(&'a self, entry: &'a Path) -> &'a Path {
        if self.at_entry { entry } else { &self.node.path }
    }

    /// The row of the guest that takes the place of `row`.
    fn row(&self, row: &LinuxDevice) -> LinuxDevice {
        let Node { kind, major, minor, path } = &self.node;
        if self.at_entry {
            let mut row = row.clone();
            row.set_major((*major).into()).set_minor((*minor).into());
            return row;
        }
        let typ = match kind {
            DeviceKind::Block => LinuxDeviceType::B,
            DeviceKind::Character => LinuxDeviceType::C,
        };
        let row = LinuxDeviceBuilder::default().path(path).typ(typ).major(*major).minor(*minor);
        row.file_mode(0o660u32).uid(0u32).gid(0u32).build().expect("every field of a device has a default")
    }
}

/// A row of the guest's spec, and the node it asks for; none for a fifo.
pub(crate) type Rewritten<'a> = (LinuxDevice, Option<&'a GuestNode>);

/// What each device of the host that a list of rows names becomes in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRows(BTreeMap<Identity, Vec<GuestNode>>);

impl HostRows {
    /// Of rows as the host wrote them and the devices assigned for them. A row that is neither served by one of
    /// `devices` nor standard is an error, as is a device without a row.
    pub fn of(rows: &[LinuxDevice], devices: &[AssignedDevice]) -> Result<Self, RewriteError> {
        let mut known = Self::default();
        for device in devices {
            device.check(devices)?;
            known.0.entry(device.host).or_default().extend(device.guest_nodes());
            let mut at_path = rows.iter().filter(|row| *row.path() == device.entry).peekable();
            if at_path.peek().is_none() {
                return Err(RewriteError::NoEntry(device.entry.clone()));
            }
            if let Some(other) = at_path.find(|row| identity(row) != Some(device.host)) {
                let (path, expected) = (device.entry.clone(), device.host);
                return Err(RewriteError::OtherIdentity { path, found: identity(other), expected });
            }
        }
        for row in rows.iter().filter(|row| row.typ() != LinuxDeviceType::P) {
            let host = identity(row);
            if host.is_some_and(|host| known.0.contains_key(&host)) {
                continue;
            }
            let own = host.and_then(|host| Some((host, standard::path(host)?)));
            let (host, path) =
                own.ok_or_else(|| RewriteError::NotAssigned { path: row.path().clone(), found: host })?;
            let Identity { kind, major, minor } = host;
            let node = Node { path: path.to_owned(), kind, major, minor };
            let (origin, pci_path) = (Origin::Standard, String::new());
            known.0.insert(host, vec![GuestNode { node, at_entry: true, origin, pci_path }]);
        }
        known.settle();
        Ok(known)
    }

    /// Each node once, and in one order whatever that of the devices.
    fn settle(&mut self) {
        for nodes in self.0.values_mut() {
            let key = |GuestNode { node, pci_path, .. }: &GuestNode| {
                (node.path.clone(), node.kind, node.major, node.minor, pci_path.clone())
            };
            nodes.sort_by_key(key);
            nodes.dedup_by(|later, first| later.node == first.node);
        }
    }

    /// Each device of the host and its nodes here.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Identity, &[GuestNode])> {
        self.0.iter().map(|(host, nodes)| (*host, &nodes[..]))
    }

    /// The nodes of a device of the host that a row names.
    pub(super) fn get(&self, host: Identity) -> Option<&[GuestNode]> {
        self.0.get(&host).map(Vec::as_slice)
    }

    /// The nodes that a row becomes; none for a fifo.
    pub fn nodes(&self, row: &LinuxDevice) -> &[GuestNode] {
        identity(row).and_then(|host| self.get(host)).unwrap_or_default()
    }

    /// These and others, each with its nodes in both.
    pub fn merged(mut self, others: Self) -> Self {
        for (host, nodes) in others.0 {
            self.0.entry(host).or_default().extend(nodes);
        }
        self.settle();
        self
    }

    /// `rows` as the guest's: each in the place of the host's, a repeated one once.
    pub(crate) fn rewrite(&self, rows: &[LinuxDevice]) -> Result<Vec<Rewritten<'_>>, RewriteError> {
        let mut rewritten: Vec<Rewritten<'_>> = Vec::new();
        for row in rows {
            let guests: Vec<Rewritten<'_>> = if row.typ() == LinuxDeviceType::P {
                vec![(row.clone(), None)]
            } else {
                self.nodes(row).iter().map(|node| (node.row(row), Some(node))).collect()
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

/// `None` for what is no device: a fifo, a row whose number no device can have.
pub(super) fn identity(row: &LinuxDevice) -> Option<Identity> {
    let kind = match row.typ() {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::A | LinuxDeviceType::P => return None,
    };
    Some(Identity { kind, major: row.major().try_into().ok()?, minor: row.minor().try_into().ok()? })
}
