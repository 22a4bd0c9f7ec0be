//! Assigning devices of the host to containers: the request, the result, and the [`Bus`] to which devices are
//! attached. `Sandbox` is such a bus, and a test has its own; `assignments` keeps which container has which device.

use std::future::Future;
use std::path::PathBuf;

use super::AssignError;
use crate::agent::AgentError;
use crate::agent::message;
use crate::host::network::Nic;
use crate::plan::Disk;
use crate::plan::PassthroughFunction;
use crate::plan::PciAddress;

/// The machine's and the guest's side of the PCI bus.
pub(super) trait Bus: Sync {
    /// Identifies an attached device.
    type Id: Copy + Send;
    /// Attaches a disk; returns its id and its PCI path in the guest.
    fn attach_disk(
        &self,
        disk: &Disk,
    ) -> impl Future<Output = Result<(Self::Id, String), AssignError>> + Send;
    /// Attaches a PCI function of the host.
    fn attach_function(
        &self,
        function: &PassthroughFunction,
    ) -> impl Future<Output = Result<(Self::Id, String), AssignError>> + Send;
    /// Attaches a network interface and takes its taps.
    fn attach_nic(
        &self,
        nic: &mut Nic,
    ) -> impl Future<Output = Result<(Self::Id, String), AssignError>> + Send;
    /// Attaches a volume's virtio-fs device.
    fn attach_volume(
        &self,
        volume: &VolumeDevice,
    ) -> impl Future<Output = Result<(Self::Id, String), AssignError>> + Send;
    /// Detaches a device.
    fn detach(&self, id: Self::Id) -> impl Future<Output = ()> + Send;
    /// Has the guest rescan its bus; returns once every device of `expect` has its node.
    fn rescan(
        &self,
        expect: Vec<message::DeviceLocator>,
    ) -> impl Future<Output = Result<(), AgentError>> + Send;
    /// Has the guest release the device at this PCI path: its driver lets it go, and it leaves the guest's bus.
    fn release(&self, path: &str) -> impl Future<Output = Result<(), AgentError>> + Send;
}

/// Devices of the host that are to be assigned, in this order.
#[derive(Debug, Default)]
pub struct HostDevices<'a> {
    /// Block devices, each attached as a virtio disk.
    pub disks: &'a [Disk],
    /// PCI functions, passed through.
    pub functions: &'a [PassthroughFunction],
    /// Network interfaces of the pod; their taps are taken.
    pub nics: &'a mut [Nic],
    /// Volumes, each attached as a virtio-fs device.
    pub volumes: &'a [VolumeDevice],
}

/// The virtio-fs device of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDevice {
    /// Unique in the sandbox, detached devices included; at most 36 bytes.
    pub tag: String,
    /// The directory it shares, in this process's mount namespace.
    pub directory: PathBuf,
}

/// Devices that were assigned to one container at once.
#[derive(Debug, Default)]
pub struct Assignment(pub(super) Vec<DeviceKey>);

impl Assignment {
    /// An assignment for each device, in the order of the request.
    pub fn split(self) -> impl Iterator<Item = Self> {
        self.0.into_iter().map(|name| Self(vec![name]))
    }

    /// One assignment for all their devices.
    pub fn join(assignments: impl IntoIterator<Item = Self>) -> Self {
        Self(assignments.into_iter().flat_map(|assignment| assignment.0).collect())
    }
}

/// Identifies a device of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DeviceKey {
    /// A block device, by its device number.
    Disk(i64, i64),
    /// A PCI function, by its address.
    Function(PciAddress),
    /// A network interface, by its name in the pod.
    Interface(String),
    /// A volume, by its tag.
    Volume(String),
}

#[cfg(test)]
mod tests;
