//! The sandbox's machine and agent as the bus to which devices are attached.

use kiai_vmm::DeviceConfig;
use kiai_vmm::DeviceId;
use kiai_vmm::NamedFile;

use super::AssignError;
use super::Sandbox;
use super::assign::Bus;
use super::assign::VolumeDevice;
use crate::agent::AgentError;
use crate::agent::message;
use crate::failure::chain;
use crate::host::network::Nic;
use crate::plan::Disk;
use crate::plan::PassthroughFunction;
use crate::plan::VfioInterface;

impl Bus for Sandbox {
    type Id = DeviceId;

    async fn attach_disk(&self, disk: &Disk) -> Result<(DeviceId, String), AssignError> {
        let path = &disk.node;
        let file = std::fs::File::options()
            .read(true)
            .write(!disk.read_only)
            .open(path)
            .map_err(|source| AssignError::Open { path: path.clone(), source })?;
        let config = DeviceConfig::Block {
            disk: NamedFile { name: path.display().to_string(), file },
            read_only: disk.read_only,
            serial: format!("disk-{}-{}", disk.major, disk.minor),
        };
        let attached = self.vm.0.attach(config);
        let attached = attached.map_err(|source| AssignError::Attach { path: path.clone(), source })?;
        Ok((attached.id, attached.pci_path))
    }

    async fn attach_function(
        &self,
        function: &PassthroughFunction,
    ) -> Result<(DeviceId, String), AssignError> {
        let opened = self.groups.open(&function.interface)?;
        let config = DeviceConfig::Vfio { opened, address: function.address.to_string() };
        let vm = self.vm.0.clone();
        // Blocks: it pins guest memory, with the first function all of it.
        match tokio::task::spawn_blocking(move || vm.attach(config)).await {
            Ok(Ok(attached)) => Ok((attached.id, attached.pci_path)),
            // Several processes may open a function's own file; that one of them uses it shows when it is bound.
            Ok(Err(error)) => Err(match &function.interface {
                VfioInterface::Cdev(node) if error.is_in_use() => {
                    let source = std::io::Error::new(std::io::ErrorKind::ResourceBusy, error);
                    AssignError::Vfio { path: node.clone(), source }
                }
                _ => AssignError::Function(error),
            }),
            Err(panic) => Err(AssignError::Panicked(panic.to_string())),
        }
    }

    async fn attach_nic(&self, nic: &mut Nic) -> Result<(DeviceId, String), AssignError> {
        let taps = std::mem::take(&mut nic.taps);
        let attached = self.vm.0.attach(DeviceConfig::Net { taps, mac: nic.mac, mtu: nic.mtu });
        let attached = attached.map_err(|source| AssignError::Nic { name: nic.name.clone(), source })?;
        Ok((attached.id, attached.pci_path))
    }

    async fn attach_volume(&self, volume: &VolumeDevice) -> Result<(DeviceId, String), AssignError> {
        let (tag, directory) = (volume.tag.clone(), volume.directory.clone());
        let attached = self.vm.0.attach(DeviceConfig::Fs { tag, directory });
        let attached = attached.map_err(AssignError::Volume)?;
        Ok((attached.id, attached.pci_path))
    }

    async fn detach(&self, id: DeviceId) {
        let vm = self.vm.0.clone();
        // Blocks: it resets a function, and with the last one unpins memory.
        match tokio::task::spawn_blocking(move || vm.detach(id)).await {
            Ok(Ok(())) => {}
            // The machine has ended, and its devices with it: nothing is left to detach.
            Ok(Err(error)) => tracing::debug!(error = %chain(&error), "detach"),
            Err(panic) => tracing::error!("detach: {panic}"),
        }
    }

    async fn rescan(&self, expect: Vec<message::DeviceLocator>) -> Result<(), AgentError> {
        self.agent.rescan_pci(expect).await
    }

    async fn release(&self, path: &str) -> Result<(), AgentError> {
        // A guest that has ended holds no device.
        if self.end.ended().is_some() { Ok(()) } else { self.agent.remove_pci(path).await }
    }
}
