//! Devices of the host lent to containers: put on the guest's bus in one transaction, with one look of the guest
//! at its bus for all of them, and taken back when the last borrower has gone.
//!
//! - A disk lent twice is one disk of the guest: two would have two caches. It goes with its last borrower.
//! - A device the guest has thrown off its bus itself stays lent; the guest's next look finds it again.
//! - A guest that does not let go loses the device all the same: what it still reads there is all ones. But its
//!   kernel takes whatever comes to that slot next for the one it had, so before anything is lent again it has
//!   to let go.
//! - Two containers take turns: nobody finds on the bus what another is about to take off it.
//!
//! Knows the machine and the agent as a [`Bus`].

use std::collections::BTreeMap;

use super::LendError;
use super::lend::Bus;
use super::lend::Loan;
use super::lend::Name;
use super::lend::Wanted;
use super::os::AsyncMutex;
use crate::agent::AgentError;
use crate::agent::message;
use crate::failure::chain;
use crate::plan::Disk;
use crate::plan::PassMode;
use crate::plan::PassedFunction;

/// What is lent at the moment; locked while that changes, which is as long as the guest takes.
pub(super) struct Desk<Id>(AsyncMutex<State<Id>>);

struct State<Id> {
    lent: BTreeMap<Name, OnBus<Id>>,
    /// Where the guest did not let go.
    clung_to: Vec<String>,
}

struct OnBus<Id> {
    id: Id,
    path: String,
    borrowers: usize,
    read_only: bool,
}

impl<Id> Default for Desk<Id> {
    fn default() -> Self {
        Self(AsyncMutex::new(State { lent: BTreeMap::new(), clung_to: Vec::new() }))
    }
}

impl<Id: Copy + Send> Desk<Id> {
    /// Lends devices to a container; returns the loan, and what to tell the agent of them. On an error nothing is
    /// lent.
    pub(super) async fn lend(
        &self,
        bus: &impl Bus<Id = Id>,
        wanted: Wanted<'_>,
    ) -> Result<(Loan, Vec<message::Device>), LendError> {
        self.0.lock().await.lend(bus, wanted).await
    }

    /// Takes a container's devices back, the last first.
    pub(super) async fn take_back(&self, bus: &impl Bus<Id = Id>, loan: Loan) {
        self.0.lock().await.take_back(bus, loan).await;
    }
}

impl<Id: Copy + Send> State<Id> {
    async fn lend(
        &mut self,
        bus: &impl Bus<Id = Id>,
        wanted: Wanted<'_>,
    ) -> Result<(Loan, Vec<message::Device>), LendError> {
        let mut loan = Loan::default();
        let Wanted { disks, functions, nics, shares } = &wanted;
        if disks.is_empty() && functions.is_empty() && nics.is_empty() && shares.is_empty() {
            return Ok((loan, Vec::new()));
        }
        while let Some(path) = self.clung_to.last() {
            let_go(bus, path).await?;
            self.clung_to.pop();
        }
        match self.lend_each(bus, wanted, &mut loan).await {
            Ok(devices) => Ok((loan, devices)),
            Err(error) => {
                self.take_back(bus, loan).await;
                Err(error)
            }
        }
    }

    async fn lend_each(
        &mut self,
        bus: &impl Bus<Id = Id>,
        wanted: Wanted<'_>,
        loan: &mut Loan,
    ) -> Result<Vec<message::Device>, LendError> {
        let (mut devices, mut new_disks, mut any) = (Vec::new(), Vec::new(), false);
        for disk in wanted.disks {
            let name = Name::Disk(disk.major, disk.minor);
            let path = match self.lent.get_mut(&name) {
                Some(there) if there.read_only != disk.read_only => {
                    return Err(LendError::OtherMode { path: disk.node.clone(), read_only: disk.read_only });
                }
                Some(there) => {
                    there.borrowers += 1;
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
            loan.0.push(name);
            devices.push(of_disk(disk, &path));
        }
        for function in wanted.functions {
            let name = Name::Function(function.address);
            if self.lent.contains_key(&name) {
                return Err(LendError::Taken(function.address.to_string()));
            }
            let (id, path) = bus.attach_function(function).await?;
            any = true;
            self.put(name.clone(), id, path.clone(), false);
            loan.0.push(name);
            devices.push(of_function(function, &path));
        }
        for nic in wanted.nics {
            let name = Name::Interface(nic.name.clone());
            if self.lent.contains_key(&name) {
                return Err(LendError::InterfaceTaken(nic.name.clone()));
            }
            let (id, path) = bus.attach_nic(nic).await?;
            any = true;
            self.put(name.clone(), id, path, false);
            loan.0.push(name);
        }
        for share in wanted.shares {
            let name = Name::Share(share.tag.clone());
            let (id, path) = bus.attach_share(share).await?;
            any = true;
            self.put(name.clone(), id, path, false);
            loan.0.push(name);
        }
        if any {
            // The nodes of functions are waited for when the container is made; interfaces and shared
            // directories where they are put to use.
            bus.rescan(new_disks).await?;
        }
        Ok(devices)
    }

    fn put(&mut self, name: Name, id: Id, path: String, read_only: bool) {
        self.lent.insert(name, OnBus { id, path, borrowers: 1, read_only });
    }

    async fn take_back(&mut self, bus: &impl Bus<Id = Id>, loan: Loan) {
        let mut answers = true;
        for name in loan.0.into_iter().rev() {
            let Some(there) = self.lent.get_mut(&name) else { continue };
            there.borrowers -= 1;
            if there.borrowers > 0 {
                continue;
            }
            let Some(OnBus { id, path, .. }) = self.lent.remove(&name) else { continue };
            // Who was silent once is not asked again for each device.
            let released = if answers { let_go(bus, &path).await } else { Ok(()) };
            if let Err(error) = &released {
                tracing::warn!(error = %chain(error), "the guest does not let go of {path}");
                answers = error.answer().is_some();
            }
            if released.is_err() || !answers {
                self.clung_to.push(path);
            }
            bus.detach(id).await;
        }
    }
}

/// What is not there any more the guest has let go of.
async fn let_go(bus: &impl Bus, path: &str) -> Result<(), AgentError> {
    match bus.let_go(path).await {
        Err(error) if error.answer() == Some(ttrpc::Code::NOT_FOUND) => Ok(()),
        other => other,
    }
}

fn locator(pci_path: &str) -> message::DeviceLocator {
    let mut locator = message::DeviceLocator::new();
    locator.set_pci_path(pci_path.to_owned());
    locator
}

fn of_disk(disk: &Disk, pci_path: &str) -> message::Device {
    let mut device = message::Device::new();
    device.locator = Some(locator(pci_path)).into();
    device.container_path = disk.container_path.display().to_string();
    device.kind = "b".into();
    device.host_major = disk.major;
    device.host_minor = disk.minor;
    device
}

fn of_function(function: &PassedFunction, pci_path: &str) -> message::Device {
    let mut locator = message::DeviceLocator::new();
    match function.mode {
        PassMode::GuestDriver => locator.set_pci_function(pci_path.to_owned()),
        PassMode::UserSpace => locator.set_pci_vfio(pci_path.to_owned()),
    }
    let mut device = message::Device::new();
    device.locator = Some(locator).into();
    device.container_path = function.container_path.display().to_string();
    device.kind = "c".into();
    device.host_major = function.major;
    device.host_minor = function.minor;
    device.host_pci_address = function.address.to_string();
    device
}
