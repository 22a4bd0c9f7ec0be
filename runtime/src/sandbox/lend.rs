//! What is lent to containers: devices of the host, over a [`Bus`]. `sandbox` is one, and so is a test's; `desk`
//! keeps who has what.

use std::future::Future;
use std::path::PathBuf;

use super::LendError;
use crate::agent::AgentError;
use crate::agent::message;
use crate::host::network::Nic;
use crate::plan::Disk;
use crate::plan::PassedFunction;
use crate::plan::PciAddress;

/// The machine's side of the bus, and the guest's.
pub(super) trait Bus: Sync {
    /// Names a device that was attached.
    type Id: Copy + Send;
    /// Puts a disk on the bus; its id and where it is in the guest.
    fn attach_disk(&self, disk: &Disk) -> impl Future<Output = Result<(Self::Id, String), LendError>> + Send;
    /// Puts a function on the bus.
    fn attach_function(
        &self,
        function: &PassedFunction,
    ) -> impl Future<Output = Result<(Self::Id, String), LendError>> + Send;
    /// Puts an interface on the bus, and takes its taps for it.
    fn attach_nic(&self, nic: &mut Nic)
    -> impl Future<Output = Result<(Self::Id, String), LendError>> + Send;
    /// Puts a shared directory on the bus.
    fn attach_share(
        &self,
        share: &Share,
    ) -> impl Future<Output = Result<(Self::Id, String), LendError>> + Send;
    /// Takes a device off the bus.
    fn detach(&self, id: Self::Id) -> impl Future<Output = ()> + Send;
    /// Has the guest look at its bus, and returns once what is expected is there.
    fn rescan(
        &self,
        expect: Vec<message::DeviceLocator>,
    ) -> impl Future<Output = Result<(), AgentError>> + Send;
    /// Has the guest let go of what is at `path`.
    fn let_go(&self, path: &str) -> impl Future<Output = Result<(), AgentError>> + Send;
}

/// What is to be lent, in this order.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// Disks.
    pub disks: &'a [Disk],
    /// PCI functions.
    pub functions: &'a [PassedFunction],
    /// Interfaces of the pod; their taps are taken.
    pub nics: &'a mut [Nic],
    /// Directories.
    pub shares: &'a [Share],
}

/// A directory of the host that is a virtio-fs device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Unlike any other of the sandbox, also those that have gone; at most 36 bytes.
    pub tag: String,
    /// In this process's mount namespace.
    pub directory: PathBuf,
}

/// What was lent to one container.
#[derive(Debug, Default)]
pub struct Loan(pub(super) Vec<Name>);

impl Loan {
    /// A loan of each device, in the order in which they were wanted.
    pub fn each(self) -> impl Iterator<Item = Self> {
        self.0.into_iter().map(|name| Self(vec![name]))
    }

    /// One loan of all of them.
    pub fn all(loans: impl IntoIterator<Item = Self>) -> Self {
        Self(loans.into_iter().flat_map(|loan| loan.0).collect())
    }
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    /// By its numbers.
    Disk(i64, i64),
    /// By its address.
    Function(PciAddress),
    /// By its name in the pod.
    Interface(String),
    /// By its tag.
    Share(String),
}

#[cfg(test)]
mod tests;
