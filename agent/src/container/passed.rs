//! The passed PCI functions of one container: waited for, then written into its spec.

use std::path::PathBuf;
use std::time::Duration;

use kiai_protocol::agent::Device;
use kiai_protocol::agent::device_locator::By;
use kiai_protocol::pci_path::PciPath;
use oci_spec::runtime::Spec;

use crate::device::{self, AdmitError, HostGroup, LocateError, Node, PciAddresses};
use crate::fault::{Fault, Result};
use crate::uevent::Uevents;

/// What the functions of a container are here.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// The rows they have on the host.
    groups: Vec<HostGroup>,
    /// What the container gets instead.
    nodes: Vec<Node>,
    /// Where they are on either side.
    pub(super) addresses: PciAddresses,
}

/// Whether a device is a passed function, not one with a node of its own.
pub(super) fn is_passed(device: &Device) -> bool {
    matches!(device.locator.by, Some(By::PciFunction(_) | By::PciVfio(_)))
}

/// Waits for every function among `devices`; the others are not looked at.
pub(super) async fn wait_for(uevents: &Uevents, devices: &[Device], timeout: Duration) -> Result<Passed> {
    let mut passed = Passed::default();
    for device in devices {
        let path: PciPath = match &device.locator.by {
            Some(By::PciFunction(path) | By::PciVfio(path)) => path.parse().map_err(LocateError::from)?,
            _ => continue,
        };
        if device.kind != "c" {
            return Err(Fault::InvalidArgument(format!("VFIO group of type {:?}, not c", device.kind)));
        }
        if let Some(By::PciVfio(_)) = &device.locator.by {
            passed.add(device::give_to_vfio(uevents, &path, timeout).await?);
            passed.add(device::vfio_container()?);
        } else {
            device::wait_for_nodes(uevents, &path, timeout)
                .await?
                .into_iter()
                .for_each(|node| passed.add(node));
        }
        let group = HostGroup {
            container_path: PathBuf::from(&device.container_path),
            major: device.host_major,
            minor: device.host_minor,
        };
        if !passed.groups.contains(&group) {
            passed.groups.push(group);
        }
        if let Some(address) = device::address(&path).filter(|_| !device.host_pci_address.is_empty()) {
            passed.addresses.insert(device.host_pci_address.to_ascii_lowercase(), address);
        }
    }
    Ok(passed)
}

impl Passed {
    fn add(&mut self, node: Node) {
        if !self.nodes.contains(&node) {
            self.nodes.push(node);
        }
    }

    /// The spec without the host's rows: before any other device is written into it.
    pub(super) fn withdraw(&self, spec: &Spec) -> Result<Spec> {
        Ok(device::withdraw(spec, &self.groups)?)
    }

    /// The spec with the guest's nodes, and addresses in the environment: after all other devices.
    pub(super) fn admit(&self, spec: &Spec) -> Result<Spec> {
        let mut spec = device::admit(spec, &self.nodes)?;
        if let Some(process) = spec.process_mut() {
            translate(process, &self.addresses);
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
