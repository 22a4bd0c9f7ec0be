//! Finding the devices that the host has assigned to a container, by their locators.

use std::path::PathBuf;
use std::time::Duration;

use kiai_protocol::agent::DeviceAssignment;
use kiai_protocol::agent::device_locator::By;
use kiai_protocol::pci_path::PciPath;

use crate::device::AssignedDevice;
use crate::device::DeviceKind;
use crate::device::Identity;
use crate::device::LocateError;
use crate::device::Node;
use crate::device::Nodes;
use crate::device::address;
use crate::device::bind_to_vfio;
use crate::device::vfio_container;
use crate::device::wait_for;
use crate::device::wait_for_nodes;
use crate::fault::Fault;
use crate::fault::Result;
use crate::uevent::Uevents;

/// Waits until each of `devices` has its nodes, and returns them.
pub(super) async fn wait_for_all(
    uevents: &Uevents,
    devices: &[DeviceAssignment],
    timeout: Duration,
) -> Result<Vec<AssignedDevice>> {
    let mut found = Vec::new();
    for device in devices {
        found.push(wait_for_one(uevents, device, timeout).await?);
    }
    Ok(found)
}

async fn wait_for_one(
    uevents: &Uevents,
    device: &DeviceAssignment,
    timeout: Duration,
) -> Result<AssignedDevice> {
    let host = host_identity(device)?;
    let (pci_path, nodes) = match &device.locator.by {
        Some(By::PciFunction(path)) => {
            let path: PciPath = path.parse().map_err(LocateError::from)?;
            let own = wait_for_nodes(uevents, &path, timeout).await?;
            (path.to_string(), function(device, host, &path, own, None)?)
        }
        Some(By::PciVfio(path)) => {
            let path: PciPath = path.parse().map_err(LocateError::from)?;
            let group = bind_to_vfio(uevents, &path, timeout).await?;
            (path.to_string(), function(device, host, &path, vec![group], Some(vfio_container()?))?)
        }
        by => {
            let pci_path = if let Some(By::PciPath(path)) = by { path.clone() } else { String::new() };
            (pci_path, Nodes::Disk(wait_for(uevents, &device.locator, timeout).await?))
        }
    };
    Ok(AssignedDevice { entry: PathBuf::from(&device.container_path), host, pci_path, nodes })
}

fn host_identity(device: &DeviceAssignment) -> Result<Identity> {
    let path = &device.container_path;
    let kind = match device.kind.as_str() {
        "b" => DeviceKind::Block,
        "c" | "u" => DeviceKind::Character,
        other => {
            let other: String = other.chars().take(64).collect();
            return Err(Fault::InvalidArgument(format!("device type {other:?} is neither b nor c")));
        }
    };
    let number = |number: i64| {
        let wrong = |_| Fault::InvalidArgument(format!("device {path:?}: a device number has 32 bits"));
        u32::try_from(number).map_err(wrong)
    };
    Ok(Identity { kind, major: number(device.host_major)?, minor: number(device.host_minor)? })
}

fn function(
    device: &DeviceAssignment,
    host: Identity,
    path: &PciPath,
    own: Vec<Node>,
    shared: Option<Node>,
) -> Result<Nodes> {
    if host.kind != DeviceKind::Character {
        return Err(Fault::InvalidArgument(format!("VFIO group of type {:?}, not c", device.kind)));
    }
    let host_address = device.host_pci_address.to_ascii_lowercase();
    Ok(Nodes::Function { host_address, guest_address: address(path), own, shared })
}
