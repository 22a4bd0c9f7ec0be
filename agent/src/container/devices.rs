//! The devices of one container: its inventory, the BPF program that enforces its rules, and the lock under which
//! both change.

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

/// The devices of a container and the rules in force.
#[derive(Debug)]
pub struct Devices {
    /// Held by a plug, an unplug and an update from before their check until they are done or undone.
    changes: tokio::sync::Mutex<()>,
    in_force: Mutex<RuleProgram>,
}

/// An inventory, and the BPF program of its rules.
#[derive(Debug)]
pub(super) struct RuleProgram {
    inventory: Arc<Inventory>,
    program: OwnedFd,
}

impl RuleProgram {
    /// Loads the program of an inventory's rules into the kernel, which verifies it. It is not enforced yet.
    pub(super) fn load(inventory: Arc<Inventory>) -> Result<Self> {
        let program = filter::program(inventory.rules());
        let program = sys::load_device_program(&program).context("load the device program")?;
        Ok(Self { inventory, program })
    }
}

impl Devices {
    /// Enforces an inventory's rules for a container of which no process runs yet.
    pub(super) fn enforce(inventory: Inventory, cgroup: &Cgroup) -> Result<Self> {
        let in_force = RuleProgram::load(Arc::new(inventory))?;
        cgroup.filter_devices(&in_force.program, None).context("attach the device program")?;
        Ok(Self { changes: Default::default(), in_force: Mutex::new(in_force) })
    }

    /// Begins a change, after the change that is under way.
    pub(super) async fn change(&self) -> Change<'_> {
        Change { devices: self, _lock: self.changes.lock().await }
    }

    /// [`Self::change`] for a thread that may block.
    pub(super) fn change_blocking(&self) -> Change<'_> {
        Change { devices: self, _lock: self.changes.blocking_lock() }
    }

    fn inventory(&self) -> Arc<Inventory> {
        self.in_force.lock().inventory.clone()
    }

    /// The addresses of its PCI functions on the host and in the guest.
    pub(super) fn pci_addresses(&self) -> PciAddresses {
        self.inventory().pci_addresses()
    }

    /// The report for the host: each device, and the rules in force.
    pub fn report(&self) -> Result<(Vec<ContainerDevice>, Vec<String>)> {
        self.inventory().report()
    }
}

/// A change of a container's devices; one at a time.
#[must_use]
pub(super) struct Change<'a> {
    devices: &'a Devices,
    _lock: MutexGuard<'a, ()>,
}

impl Change<'_> {
    /// The inventory in force.
    pub(super) fn inventory(&self) -> Arc<Inventory> {
        self.devices.inventory()
    }

    /// Enforces an inventory in place of the one in force, which stays in force on an error.
    pub(super) fn enforce(&self, inventory: Arc<Inventory>, cgroup: &Cgroup) -> Result<()> {
        let mut in_force = self.devices.in_force.lock();
        if in_force.inventory.rules() == inventory.rules() {
            in_force.inventory = inventory;
            return Ok(());
        }
        drop(in_force);
        self.enforce_loaded(RuleProgram::load(inventory)?, cgroup)
    }

    /// [`Self::enforce`] with a program that is loaded already.
    pub(super) fn enforce_loaded(&self, loaded: RuleProgram, cgroup: &Cgroup) -> Result<()> {
        let mut in_force = self.devices.in_force.lock();
        cgroup
            .filter_devices(&loaded.program, Some(&in_force.program))
            .context("attach the device program")?;
        *in_force = loaded;
        Ok(())
    }
}
