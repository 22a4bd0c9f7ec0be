//! The devices of one container: its inventory, the program that enforces its rules, and the lock under which either
//! changes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use kiai_protocol::agent::ContainerDevice;
use parking_lot::Mutex;
use tokio::sync::MutexGuard;

use super::inventory::Inventory;
use crate::cgroup::Cgroup;
use crate::device::PciAddresses;
use crate::device::filter;
use crate::fault::Result;
use crate::sys;

/// What a container has of devices, and what it may do with them.
#[derive(Debug)]
pub struct Devices {
    /// Held by an attach, a detach and an update from before their check to their end, or until all is as it was.
    changes: tokio::sync::Mutex<()>,
    in_force: Mutex<InForce>,
}

/// An inventory, and the program that the kernel has of its rules.
#[derive(Debug)]
pub(super) struct InForce {
    inventory: Arc<Inventory>,
    program: OwnedFd,
}

impl InForce {
    /// Has the kernel check the program of an inventory's rules; nobody follows it yet.
    pub(super) fn load(inventory: Arc<Inventory>) -> Result<Self> {
        let program = filter::program(inventory.rules());
        let program = sys::load_device_program(&program).context("load the device program")?;
        Ok(Self { inventory, program })
    }
}

impl Devices {
    /// Of a container of which nothing runs yet.
    pub(super) fn enforce(inventory: Inventory, cgroup: &Cgroup) -> Result<Self> {
        let in_force = InForce::load(Arc::new(inventory))?;
        cgroup.filter_devices(&in_force.program, None).context("attach the device program")?;
        Ok(Self { changes: Default::default(), in_force: Mutex::new(in_force) })
    }

    /// Waits for the change that is under way.
    pub(super) async fn change(&self) -> Change<'_> {
        Change { devices: self, _lock: self.changes.lock().await }
    }

    /// The same where waiting blocks.
    pub(super) fn change_blocking(&self) -> Change<'_> {
        Change { devices: self, _lock: self.changes.blocking_lock() }
    }

    fn inventory(&self) -> Arc<Inventory> {
        self.in_force.lock().inventory.clone()
    }

    /// Where its PCI functions are, on the host and here.
    pub(super) fn pci_addresses(&self) -> PciAddresses {
        self.inventory().pci_addresses()
    }

    /// What the host is told: each device, and the rules in force.
    pub fn report(&self) -> Result<(Vec<ContainerDevice>, Vec<String>)> {
        self.inventory().report()
    }
}

/// A change of a container's devices, of which there is one at a time.
#[must_use]
pub(super) struct Change<'a> {
    devices: &'a Devices,
    _lock: MutexGuard<'a, ()>,
}

impl Change<'_> {
    /// What the container has now.
    pub(super) fn inventory(&self) -> Arc<Inventory> {
        self.devices.inventory()
    }

    /// Puts an inventory in the place of the one in force. On an error that is in force still.
    pub(super) fn enforce(&self, inventory: Arc<Inventory>, cgroup: &Cgroup) -> Result<()> {
        let mut in_force = self.devices.in_force.lock();
        if in_force.inventory.rules() == inventory.rules() {
            in_force.inventory = inventory;
            return Ok(());
        }
        drop(in_force);
        self.enforce_loaded(InForce::load(inventory)?, cgroup)
    }

    /// The same with a program the kernel has accepted.
    pub(super) fn enforce_loaded(&self, loaded: InForce, cgroup: &Cgroup) -> Result<()> {
        let mut in_force = self.devices.in_force.lock();
        cgroup
            .filter_devices(&loaded.program, Some(&in_force.program))
            .context("attach the device program")?;
        *in_force = loaded;
        Ok(())
    }
}
