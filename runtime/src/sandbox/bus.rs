//! The sandbox's machine and agent as the bus that devices are lent over.

use kiai_vmm::DeviceConfig;
use kiai_vmm::DeviceId;
use kiai_vmm::NamedFile;

use super::LendError;
use super::Sandbox;
use super::lend::Bus;
use super::lend::Share;
use crate::agent::AgentError;
use crate::agent::message;
use crate::failure::chain;
use crate::host::network::Nic;
use crate::plan::Disk;
use crate::plan::PassedFunction;
use crate::plan::VfioInterface;

impl Bus for Sandbox {
    type Id = DeviceId;

    async fn attach_disk(&self, disk: &Disk) -> Result<(DeviceId, String), LendError> {
        let path = &disk.node;
        let file = std::fs::File::options()
            .read(true)
            .write(!disk.read_only)
            .open(path)
            .map_err(|source| LendError::Open { path: path.clone(), source })?;
        let config = DeviceConfig::Block {
            disk: NamedFile { name: path.display().to_string(), file },
            read_only: disk.read_only,
            serial: format!("disk-{}-{}", disk.major, disk.minor),
        };
        let attached = self.vm.0.attach(config);
        let attached = attached.map_err(|source| LendError::Attach { path: path.clone(), source })?;
        Ok((attached.id, attached.pci_path))
    }

    async fn attach_function(&self, function: &PassedFunction) -> Result<(DeviceId, String), LendError> {
        let opened = self.groups.open(&function.interface)?;
        let config = DeviceConfig::Vfio { opened, address: function.address.to_string() };
        let vm = self.vm.0.clone();
        // Pins guest memory, with the first one all of it.
        match tokio::task::spawn_blocking(move || vm.attach(config)).await {
            Ok(Ok(attached)) => Ok((attached.id, attached.pci_path)),
            // Everybody may open a function's own file: who has it is known when it is bound.
            Ok(Err(error)) => Err(match &function.interface {
                VfioInterface::Cdev(node) if error.is_in_use() => {
                    let source = std::io::Error::new(std::io::ErrorKind::ResourceBusy, error);
                    LendError::Vfio { path: node.clone(), source }
                }
                _ => LendError::Pass(error),
            }),
            Err(panic) => Err(LendError::Panicked(panic.to_string())),
        }
    }

    async fn attach_nic(&self, nic: &mut Nic) -> Result<(DeviceId, String), LendError> {
        let taps = std::mem::take(&mut nic.taps);
        let attached = self.vm.0.attach(DeviceConfig::Net { taps, mac: nic.mac, mtu: nic.mtu });
        let attached = attached.map_err(|source| LendError::Nic { name: nic.name.clone(), source })?;
        Ok((attached.id, attached.pci_path))
    }

    async fn attach_share(&self, share: &Share) -> Result<(DeviceId, String), LendError> {
        let (tag, directory) = (share.tag.clone(), share.directory.clone());
        let attached = self.vm.0.attach(DeviceConfig::Fs { tag, directory });
        let attached = attached.map_err(LendError::Share)?;
        Ok((attached.id, attached.pci_path))
    }

    async fn detach(&self, id: DeviceId) {
        let vm = self.vm.0.clone();
        // Resets a function, and unpins memory with the last.
        match tokio::task::spawn_blocking(move || vm.detach(id)).await {
            Ok(Ok(())) => {}
            // The machine has ended, and its devices with it.
            Ok(Err(error)) => tracing::debug!(error = %chain(&error), "detach"),
            Err(panic) => tracing::error!("detach: {panic}"),
        }
    }

    async fn rescan(&self, expect: Vec<message::DeviceLocator>) -> Result<(), AgentError> {
        self.agent.rescan_pci(expect).await
    }

    async fn let_go(&self, path: &str) -> Result<(), AgentError> {
        // Who has ended holds nothing.
        if self.endings.ended().is_some() { Ok(()) } else { self.agent.remove_pci(path).await }
    }
}
