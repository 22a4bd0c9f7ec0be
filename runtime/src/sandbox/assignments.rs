//! Devices of the host that are assigned to containers: attached to the guest's bus in one transaction, with one
//! rescan of the bus for all of them, and detached when the last container that has them gives them up.
//!
//! - A disk assigned to two containers is one disk of the guest: two would have two caches. It is detached with the
//!   last assignment.
//! - A device that the guest has removed from its bus itself stays assigned; the guest's next rescan finds it again.
//! - A device is detached even if the guest does not release it: the guest then reads all ones there. But its
//!   kernel takes the next device in that slot for the one it had, so it has to release the slot before another
//!   device is assigned.
//! - Assignments take turns, so none finds a device on the bus that another is about to detach.
//!
//! The machine and the agent are known here as a [`Bus`] only.

use std::collections::BTreeMap;

use super::AssignError;
use super::assign::Assignment;
use super::assign::Bus;
use super::assign::DeviceKey;
use super::assign::HostDevices;
use super::os::AsyncMutex;
use crate::agent::AgentError;
use crate::agent::message;
use crate::failure::chain;
use crate::plan::Disk;
use crate::plan::PassthroughFunction;
use crate::plan::PassthroughMode;

/// Every device that is assigned; locked during a change, which takes as long as the guest does.
pub(super) struct Assignments<Id>(AsyncMutex<State<Id>>);

struct State<Id> {
    attached: BTreeMap<DeviceKey, AttachedDevice<Id>>,
    /// PCI paths of detached devices that the guest did not release.
    unreleased: Vec<String>,
}

struct AttachedDevice<Id> {
    id: Id,
    path: String,
    users: usize,
    read_only: bool,
}

impl<Id> Default for Assignments<Id> {
    fn default() -> Self {
        Self(AsyncMutex::new(State { attached: BTreeMap::new(), unreleased: Vec::new() }))
    }
}

impl<Id: Copy + Send> Assignments<Id> {
    /// Assigns devices to a container; returns the assignment, and the message that tells the agent of each disk and
    /// function. On an error no device is assigned.
    pub(super) async fn assign(
        &self,
        bus: &impl Bus<Id = Id>,
        wanted: HostDevices<'_>,
    ) -> Result<(Assignment, Vec<message::DeviceAssignment>), AssignError> {
        self.0.lock().await.assign(bus, wanted).await
    }

    /// Unassigns devices of a container, the last first.
    pub(super) async fn unassign(&self, bus: &impl Bus<Id = Id>, assignment: Assignment) {
        self.0.lock().await.unassign(bus, assignment).await;
    }
}

impl<Id: Copy + Send> State<Id> {
    async fn assign(
        &mut self,
        bus: &impl Bus<Id = Id>,
        wanted: HostDevices<'_>,
    ) -> Result<(Assignment, Vec<message::DeviceAssignment>), AssignError> {
        let mut assignment = Assignment::default();
        let HostDevices { disks, functions, nics, volumes } = &wanted;
        if disks.is_empty() && functions.is_empty() && nics.is_empty() && volumes.is_empty() {
            return Ok((assignment, Vec::new()));
        }
        while let Some(path) = self.unreleased.last() {
            release(bus, path).await?;
            self.unreleased.pop();
        }
        match self.attach_all(bus, wanted, &mut assignment).await {
            Ok(devices) => Ok((assignment, devices)),
            Err(error) => {
                self.unassign(bus, assignment).await;
                Err(error)
            }
        }
    }

    async fn attach_all(
        &mut self,
        bus: &impl Bus<Id = Id>,
        wanted: HostDevices<'_>,
        assignment: &mut Assignment,
    ) -> Result<Vec<message::DeviceAssignment>, AssignError> {
        let (mut devices, mut new_disks, mut any) = (Vec::new(), Vec::new(), false);
        for disk in wanted.disks {
            let name = DeviceKey::Disk(disk.major, disk.minor);
            let path = match self.attached.get_mut(&name) {
                Some(there) if there.read_only != disk.read_only => {
                    return Err(AssignError::AccessConflict {
                        path: disk.node.clone(),
                        read_only: disk.read_only,
                    });
                }
                Some(there) => {
                    there.users += 1;
                    there.path.clone()
                }
                None => {
                    let (id, path) = bus.attach_disk(disk).await?;
                    any = true;
                    new_disks.push(locator(&path));
                    self.put(name.clone(), id, path.clone(), disk.read_only);
                    path
                }
            };
            assignment.0.push(name);
            devices.push(of_disk(disk, &path));
        }
        for function in wanted.functions {
            let name = DeviceKey::Function(function.address);
            if self.attached.contains_key(&name) {
                return Err(AssignError::FunctionAssigned(function.address.to_string()));
            }
            let (id, path) = bus.attach_function(function).await?;
            any = true;
            self.put(name.clone(), id, path.clone(), false);
            assignment.0.push(name);
            devices.push(of_function(function, &path));
        }
        for nic in wanted.nics {
            let name = DeviceKey::Interface(nic.name.clone());
            if self.attached.contains_key(&name) {
                return Err(AssignError::InterfaceAssigned(nic.name.clone()));
            }
            let (id, path) = bus.attach_nic(nic).await?;
            any = true;
            self.put(name.clone(), id, path, false);
            assignment.0.push(name);
        }
        for volume in wanted.volumes {
            let name = DeviceKey::Volume(volume.tag.clone());
            let (id, path) = bus.attach_volume(volume).await?;
            any = true;
            self.put(name.clone(), id, path, false);
            assignment.0.push(name);
        }
        if any {
            // The agent waits for the nodes of functions when it makes the container, and for interfaces and volumes
            // when it uses them.
            bus.rescan(new_disks).await?;
        }
        Ok(devices)
    }

    fn put(&mut self, name: DeviceKey, id: Id, path: String, read_only: bool) {
        self.attached.insert(name, AttachedDevice { id, path, users: 1, read_only });
    }

    async fn unassign(&mut self, bus: &impl Bus<Id = Id>, assignment: Assignment) {
        let mut answers = true;
        for name in assignment.0.into_iter().rev() {
            let Some(there) = self.attached.get_mut(&name) else { continue };
            there.users -= 1;
            if there.users > 0 {
                continue;
            }
            let Some(AttachedDevice { id, path, .. }) = self.attached.remove(&name) else { continue };
            // A guest that did not answer once is not asked again for each device.
            let released = if answers { release(bus, &path).await } else { Ok(()) };
            if let Err(error) = &released {
                tracing::warn!(error = %chain(error), "the guest does not release the device at {path}");
                answers = error.answer().is_some();
            }
            if released.is_err() || !answers {
                self.unreleased.push(path);
            }
            bus.detach(id).await;
        }
    }
}

/// A device that the guest no longer has is released already.
async fn release(bus: &impl Bus, path: &str) -> Result<(), AgentError> {
    match bus.release(path).await {
        Err(error) if error.answer() == Some(ttrpc::Code::NOT_FOUND) => Ok(()),
        other => other,
    }
}

fn locator(pci_path: &str) -> message::DeviceLocator {
    let mut locator = message::DeviceLocator::new();
    locator.set_pci_path(pci_path.to_owned());
    locator
}

fn of_disk(disk: &Disk, pci_path: &str) -> message::DeviceAssignment {
    let mut device = message::DeviceAssignment::new();
    device.locator = Some(locator(pci_path)).into();
    device.container_path = disk.container_path.display().to_string();
    device.kind = "b".into();
    device.host_major = disk.major;
    device.host_minor = disk.minor;
    device
}

fn of_function(function: &PassthroughFunction, pci_path: &str) -> message::DeviceAssignment {
    let mut locator = message::DeviceLocator::new();
    match function.mode {
        PassthroughMode::GuestDriver => locator.set_pci_function(pci_path.to_owned()),
        PassthroughMode::UserSpace => locator.set_pci_vfio(pci_path.to_owned()),
    }
    let mut device = message::DeviceAssignment::new();
    device.locator = Some(locator).into();
    device.container_path = function.container_path.display().to_string();
    device.kind = "c".into();
    device.host_major = function.major;
    device.host_minor = function.minor;
    device.host_pci_address = function.address.to_string();
    device
}
