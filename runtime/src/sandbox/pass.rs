//! PCI functions of the host in the sandbox: attached as one transaction, and taken back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Weak;

use kiai_vmm::DeviceConfig;
use kiai_vmm::DeviceId;
use kiai_vmm::VfioGroup;
use parking_lot::Mutex;

use super::LendError;
use super::Sandbox;
use crate::agent::message;
use crate::failure::chain;
use crate::plan::PassMode;
use crate::plan::PassedFunction;
use crate::plan::PciAddress;

/// Groups that are open. The kernel opens each once, so functions of one group share it.
#[derive(Default)]
pub(super) struct Groups(Mutex<BTreeMap<u32, Weak<VfioGroup>>>);

impl Groups {
    fn open(&self, number: u32) -> Result<Arc<VfioGroup>, LendError> {
        let mut groups = self.0.lock();
        if let Some(group) = groups.get(&number).and_then(Weak::upgrade) {
            return Ok(group);
        }
        let container = open("/dev/vfio/vfio".into())?;
        let group = VfioGroup::new(number, open(format!("/dev/vfio/{number}").into())?, container);
        groups.insert(number, Arc::downgrade(&group));
        Ok(group)
    }
}

fn open(path: PathBuf) -> Result<OwnedFd, LendError> {
    match File::options().read(true).write(true).open(&path) {
        Ok(file) => Ok(file.into()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let source = io::Error::new(error.kind(), "another pod or program has it open");
            Err(LendError::Vfio { path, source })
        }
        Err(source) => Err(LendError::Vfio { path, source }),
    }
}

/// Functions in the sandbox, in the order in which they came.
#[derive(Debug, Default)]
pub struct Passed(Vec<OnBus>);

#[derive(Debug)]
struct OnBus {
    address: PciAddress,
    id: DeviceId,
    /// In the guest.
    path: String,
}

impl Sandbox {
    /// Puts functions of the host on the guest's bus; returns them, and what to tell the agent of them. On an
    /// error none of them is there.
    pub async fn pass(
        &self,
        functions: &[PassedFunction],
    ) -> Result<(Passed, Vec<message::Device>), LendError> {
        let mut passed = Passed::default();
        match self.pass_each(functions, &mut passed).await {
            Ok(devices) => Ok((passed, devices)),
            Err(error) => {
                self.take_back(passed).await;
                Err(error)
            }
        }
    }

    async fn pass_each(
        &self,
        functions: &[PassedFunction],
        passed: &mut Passed,
    ) -> Result<Vec<message::Device>, LendError> {
        let mut devices = Vec::new();
        for function in functions {
            let config = DeviceConfig::Vfio {
                group: self.groups.open(function.group)?,
                address: function.address.to_string(),
            };
            let vm = self.vm.0.clone();
            // Pins guest memory, with the first one all of it.
            let attached = tokio::task::spawn_blocking(move || vm.attach(config)).await;
            let attached = match attached {
                Ok(attached) => attached.map_err(LendError::Pass)?,
                Err(panic) => return Err(LendError::Panicked(panic.to_string())),
            };
            devices.push(device(function, &attached.pci_path));
            passed.0.push(OnBus { address: function.address, id: attached.id, path: attached.pci_path });
        }
        if !devices.is_empty() {
            // Their nodes are waited for when the container is made.
            self.agent.rescan_pci(Vec::new()).await?;
        }
        Ok(devices)
    }

    /// Has the guest let go of functions, takes them off its bus and resets them. A guest that does not answer
    /// loses them all the same.
    pub async fn take_back(&self, passed: Passed) {
        for function in passed.0.into_iter().rev() {
            if self.endings.ended().is_none()
                && let Err(error) = self.agent.remove_pci(&function.path).await
            {
                tracing::warn!(error = %chain(&error), "the guest does not let go of {}", function.address);
            }
            let (vm, id) = (self.vm.0.clone(), function.id);
            match tokio::task::spawn_blocking(move || vm.detach(id)).await {
                Ok(Ok(())) => {}
                // The machine has ended, and its devices with it.
                Ok(Err(error)) => tracing::debug!(error = %chain(&error), "detach {}", function.address),
                Err(panic) => tracing::error!("detach {}: {panic}", function.address),
            }
        }
    }
}

fn device(function: &PassedFunction, pci_path: &str) -> message::Device {
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
