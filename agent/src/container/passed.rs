//! The passed PCI functions of one container: waited for, then written into its spec.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiai_protocol::agent::Device;
use kiai_protocol::agent::device_locator::By;
use kiai_protocol::pci_path::PciPath;
use oci_spec::runtime::Spec;

use crate::device::{self, AdmitError, HostGroup, LocateError, Node, PciAddresses};
use crate::fault::{Fault, Result};
use crate::uevent::Uevents;

/// The functions of a container, in the order in which they came.
#[derive(Debug, Clone, Default)]
pub(super) struct Passed(Vec<Function>);

/// One function.
#[derive(Debug, Clone)]
pub(super) struct Function {
    /// The row it has on the host: its group's.
    group: HostGroup,
    /// On the host.
    host_address: String,
    /// Where it is here.
    pub(super) pci_path: String,
    address: Option<String>,
    /// What the container gets instead of the row.
    pub(super) nodes: Vec<Node>,
    /// The node among them that every user of VFIO opens, which is no function's own.
    container: Option<Node>,
}

impl Function {
    async fn wait_for(uevents: &Uevents, device: &Device, timeout: Duration) -> Result<Self> {
        let (Some(By::PciFunction(path) | By::PciVfio(path)), "c") = (&device.locator.by, &*device.kind)
        else {
            return Err(Fault::InvalidArgument(format!("VFIO group of type {:?}, not c", device.kind)));
        };
        let path: PciPath = path.parse().map_err(LocateError::from)?;
        let (nodes, container) = if let Some(By::PciVfio(_)) = &device.locator.by {
            let group = device::give_to_vfio(uevents, &path, timeout).await?;
            let container = device::vfio_container()?;
            (vec![group, container.clone()], Some(container))
        } else {
            (device::wait_for_nodes(uevents, &path, timeout).await?, None)
        };
        Ok(Self {
            group: HostGroup {
                container_path: PathBuf::from(&device.container_path),
                major: device.host_major,
                minor: device.host_minor,
            },
            host_address: device.host_pci_address.to_ascii_lowercase(),
            pci_path: path.to_string(),
            address: device::address(&path),
            nodes,
            container,
        })
    }

    /// Path of the host's row it stands for.
    pub(super) fn entry(&self) -> &Path {
        &self.group.container_path
    }

    /// Its address on the host.
    pub(super) fn host_address(&self) -> &str {
        &self.host_address
    }

    /// Whether the host calls it so.
    pub(super) fn is(&self, entry: &Path, host_address: &str) -> bool {
        self.entry() == entry && self.host_address == host_address.to_ascii_lowercase()
    }

    /// Whether a node of it stays in the guest when it goes.
    pub(super) fn outlives(&self, node: &Path) -> bool {
        self.container.as_ref().is_some_and(|container| container.path == node)
    }
}

/// Whether a device is a passed function, not one with a node of its own.
pub(super) fn is_passed(device: &Device) -> bool {
    matches!(device.locator.by, Some(By::PciFunction(_) | By::PciVfio(_)))
}

impl Passed {
    /// Waits for every function among `devices`; the others are not looked at.
    pub(super) async fn wait_for(uevents: &Uevents, devices: &[Device], timeout: Duration) -> Result<Self> {
        let mut functions = Vec::new();
        for device in devices.iter().filter(|device| is_passed(device)) {
            functions.push(Function::wait_for(uevents, device, timeout).await?);
        }
        Ok(Self(functions))
    }

    pub(super) fn functions(&self) -> impl Iterator<Item = &Function> {
        self.0.iter()
    }

    /// Each node once, with the function that has it.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Function, &Node)> {
        let all =
            || self.0.iter().flat_map(|function| function.nodes.iter().map(move |node| (function, node)));
        all()
            .enumerate()
            .filter(move |(index, (_, node))| all().take(*index).all(|(_, other)| other != *node))
            .map(|(_, found)| found)
    }

    /// Others come to these.
    pub(super) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// One goes.
    pub(super) fn forget(&mut self, entry: &Path, host_address: &str) {
        self.0.retain(|function| !function.is(entry, host_address));
    }

    /// Where they are on either side.
    pub(super) fn addresses(&self) -> PciAddresses {
        let known = self.0.iter().filter(|function| !function.host_address.is_empty());
        known
            .filter_map(|function| Some((function.host_address.clone(), function.address.clone()?)))
            .collect()
    }

    /// The spec without the host's rows: before any other device is written into it.
    pub(super) fn withdraw(&self, spec: &Spec) -> Result<Spec> {
        let mut groups: Vec<HostGroup> = Vec::new();
        for Function { group, .. } in &self.0 {
            if !groups.contains(group) {
                groups.push(group.clone());
            }
        }
        Ok(device::withdraw(spec, &groups)?)
    }

    /// The spec with the guest's nodes, and addresses in the environment: after all other devices.
    pub(super) fn admit(&self, spec: &Spec) -> Result<Spec> {
        let nodes: Vec<Node> = self.nodes().map(|(_, node)| node.clone()).collect();
        let mut spec = device::admit(spec, &nodes)?;
        if let Some(process) = spec.process_mut() {
            translate(process, &self.addresses());
        }
        Ok(spec)
    }
}

/// Translates the addresses in a process's environment.
pub(super) fn translate(process: &mut oci_spec::runtime::Process, addresses: &PciAddresses) {
    if !addresses.is_empty() {
        let environment = process.env().as_deref().unwrap_or_default();
        let environment = device::translate(environment, addresses);
        process.set_env(Some(environment));
    }
}

impl From<AdmitError> for Fault {
    fn from(error: AdmitError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::device::DeviceKind;

    pub(in super::super) fn user_space(host_address: &str, pci_path: &str, minor: i64) -> Passed {
        let node =
            |path: &str, major, minor| Node { path: path.into(), kind: DeviceKind::Character, major, minor };
        let container = node("/dev/vfio/vfio", 10, 196);
        Passed(vec![Function {
            group: HostGroup { container_path: "/dev/vfio/12".into(), major: 243, minor: 4 },
            host_address: host_address.into(),
            pci_path: pci_path.into(),
            address: Some(format!("0000:00:{pci_path}")),
            nodes: vec![node(&format!("/dev/vfio/noiommu-{minor}"), 243, minor), container.clone()],
            container: Some(container),
        }])
    }

    #[test]
    fn functions_of_one_group_share_its_row_and_one_node() {
        let mut passed = user_space("0000:00:03.0", "05.0", 0);
        passed.extend(user_space("0000:00:03.1", "05.1", 1));
        let shown = |passed: &Passed| -> Vec<_> {
            passed
                .nodes()
                .map(|(function, node)| format!("{} {}", function.pci_path, node.path.display()))
                .collect()
        };
        assert_eq!(
            shown(&passed),
            ["05.0 /dev/vfio/noiommu-0", "05.0 /dev/vfio/vfio", "05.1 /dev/vfio/noiommu-1"]
        );
        assert_eq!(passed.addresses().len(), 2);
        let spec: Spec =
            serde_json::from_value(serde_json::json!({"ociVersion": "1.1.0", "linux": {"devices": [
                {"path": "/dev/vfio/12", "type": "c", "major": 243, "minor": 4},
            ]}}))
            .unwrap();
        let withdrawn = passed.withdraw(&spec).unwrap();
        assert_eq!(withdrawn.linux().clone().unwrap().devices().clone().unwrap(), []);
        passed.forget(Path::new("/dev/vfio/12"), "0000:00:03.0");
        assert_eq!(shown(&passed), ["05.1 /dev/vfio/noiommu-1", "05.1 /dev/vfio/vfio"]);
    }
}
