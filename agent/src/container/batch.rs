//! Devices that come to a container which is there, as a spec of their own: what is to be made of it and allowed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiai_protocol::agent::{Device, PluggedDevice};
use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxResources, Spec};

use super::lent::{Lent, Owner};
use super::plug::is_place;
use crate::device::DeviceKind;
use crate::device::rule::Rule;
use crate::fault::{Fault, Result};
use crate::oci::DeviceNode;
use crate::uevent::Uevents;

/// What comes together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) lent: Lent,
    /// In the order of their nodes.
    pub(super) devices: Vec<Plugged>,
    /// To come after those in force.
    pub(super) rules: Vec<Rule>,
}

/// A device that was plugged in: an entry of the host's spec, or a PCI function behind one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plugged {
    pub(super) entry: PathBuf,
    pub(super) host_address: String,
    /// Its nodes; one may be another device's too.
    pub(super) nodes: Vec<DeviceNode>,
    /// Paths of those that are the guest's, whoever comes and goes.
    lasting: Vec<PathBuf>,
}

impl Plugged {
    /// Whether the host calls it so.
    pub(super) fn is(&self, name: &PluggedDevice) -> bool {
        self.entry == Path::new(&name.entry)
            && self.host_address == name.host_pci_address.to_ascii_lowercase()
    }

    /// The nodes that end with it.
    pub(super) fn ending(&self) -> impl Iterator<Item = &DeviceNode> {
        self.nodes.iter().filter(|node| !self.lasting.contains(&node.path))
    }
}

impl Batch {
    /// Waits until every device of the host has its node. `linux` is OCI JSON with the host's entries and rules;
    /// `wanted` are the entries that the host lends.
    pub(super) async fn find(
        uevents: &Uevents,
        linux: &[u8],
        wanted: &[Device],
        timeout: Duration,
    ) -> Result<Self> {
        let spec = spec(linux)?;
        Self::new(Lent::find(uevents, &spec, wanted, timeout).await?, &spec)
    }

    fn new(lent: Lent, spec: &Spec) -> Result<Self> {
        let spec = lent.write_into(spec)?;
        let mut devices: Vec<Plugged> = Vec::new();
        for node in rows(&spec)? {
            if !is_place(&node.path) {
                let path = &node.path;
                let reason = "its path is not an absolute one without `..`";
                return Err(Fault::InvalidArgument(format!("device {path:?}: {reason}")));
            }
            for owner in lent.owners(&node.path) {
                let is = |device: &Plugged| {
                    device.entry == owner.entry && device.host_address == owner.host_address
                };
                let index = devices.iter().position(is).unwrap_or(devices.len());
                if index == devices.len() {
                    let Owner { entry, host_address, .. } = owner.clone();
                    devices.push(Plugged { entry, host_address, nodes: Vec::new(), lasting: Vec::new() });
                }
                devices[index].nodes.push(node.clone());
                if owner.lasts {
                    devices[index].lasting.push(node.path.clone());
                }
            }
        }
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
        let rules = Rule::parse_all(rules)?;
        Ok(Self { lent, devices, rules })
    }

    /// Paths of the host's entries, one for each device.
    pub(super) fn entries(&self) -> Vec<PathBuf> {
        self.devices.iter().map(|device| device.entry.clone()).collect()
    }

    /// Of devices that were found.
    #[cfg(test)]
    pub(super) fn of(lent: Lent, linux: &serde_json::Value) -> Result<Self> {
        Self::new(lent, &spec(linux.to_string().as_bytes())?)
    }

    /// Each node, and whether it is the guest's whoever comes and goes.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&DeviceNode, bool)> {
        self.devices
            .iter()
            .flat_map(|device| device.nodes.iter().map(|node| (node, device.lasting.contains(&node.path))))
    }
}

/// What is to be looked at of what the host has sent.
fn spec(linux: &[u8]) -> Result<Spec> {
    let mut whole = Linux::default();
    if !linux.is_empty() {
        whole = serde_json::from_slice(linux)
            .map_err(|error| Fault::InvalidArgument(format!("OCI linux: {error}")))?;
    }
    let rules = whole.resources().as_ref().and_then(|resources| resources.devices().clone());
    let mut resources = LinuxResources::default();
    resources.set_devices(rules);
    let entries = if linux.is_empty() { None } else { whole.devices().clone() };
    whole = Linux::default();
    whole.set_devices(entries).set_resources(Some(resources));
    let mut spec = Spec::default();
    spec.set_linux(Some(whole)).set_process(None).set_mounts(None);
    Ok(spec)
}

/// The nodes a spec that is the guest's asks for; fifos are none.
pub(super) fn rows(spec: &Spec) -> Result<Vec<DeviceNode>> {
    let rows = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    let mut nodes = Vec::new();
    for row in rows {
        let wrong = |reason: &str| Fault::InvalidArgument(format!("device {:?}: {reason}", row.path()));
        let kind = match row.typ() {
            LinuxDeviceType::B => DeviceKind::Block,
            LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
            LinuxDeviceType::A | LinuxDeviceType::P => continue,
        };
        let number = |number: i64| u32::try_from(number).map_err(|_| wrong("a device number has 32 bits"));
        let (major, minor) = (number(row.major())?, number(row.minor())?);
        let mode = row.file_mode().unwrap_or(0o666) & 0o777;
        let (uid, gid) = (row.uid().unwrap_or(0), row.gid().unwrap_or(0));
        nodes.push(DeviceNode { path: row.path().clone(), kind, major, minor, mode, uid, gid });
    }
    Ok(nodes)
}
