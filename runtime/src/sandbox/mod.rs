//! The microVM of a pod: booted, asked through its agent, ended. One per process.
//!
//! Knows nothing of containerd and little of containers: it has the machine, the shared directory, the agent,
//! and hands out vsock ports. Names no KVM type.

mod boot;
mod ending;
mod pass;
mod shared;

use std::sync::Arc;

use kiai_vmm::VmHandle;
use kiai_vmm::vsock::VsockPorts;

use crate::agent::Agent;
use crate::agent::AgentError;
use crate::agent::message;
use crate::container::io::PortNumbers;
use crate::plan::Disk;

pub use boot::BootError;
pub use boot::boot;
pub use ending::Ended;
pub use ending::Endings;
pub use pass::Passed;
pub use shared::SharedDirectory;

/// A booted microVM whose agent answers. Dropping it stops the machine.
pub struct Sandbox {
    /// Its agent.
    pub agent: Agent,
    /// The host's side of its vsock.
    pub ports: Arc<VsockPorts>,
    /// Ports for streams.
    pub port_numbers: PortNumbers,
    /// Its end, when that comes.
    pub endings: Endings,
    vm: Machine,
    groups: pass::Groups,
}

/// A device of the host that could not be lent to the guest.
#[derive(Debug, thiserror::Error)]
pub enum LendError {
    /// The node cannot be opened.
    #[error("block device {path}")]
    Open {
        /// On the host.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The machine would not take it.
    #[error("attach block device {path}")]
    Attach {
        /// On the host.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        source: kiai_vmm::AttachError,
    },
    /// The VFIO nodes of a PCI function cannot be opened.
    #[error("VFIO group {path}")]
    Vfio {
        /// On the host.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The machine would not take a PCI function.
    #[error("pass a device")]
    Pass(#[source] kiai_vmm::AttachError),
    /// A thread of ours panicked.
    #[error("attaching panicked: {0}")]
    Panicked(String),
    /// The guest did not find it.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl Sandbox {
    /// Puts block devices of the host on the guest's bus and has the guest find them.
    pub async fn lend(&self, disks: &[Disk]) -> Result<Vec<message::Device>, LendError> {
        let mut devices: Vec<message::Device> = Vec::new();
        for disk in disks {
            // Two entries for one device stay one device.
            let same = devices.iter().find(|d| (d.host_major, d.host_minor) == (disk.major, disk.minor));
            let mut device = same.cloned().map_or_else(|| self.attach(disk), Ok)?;
            device.container_path = disk.container_path.display().to_string();
            devices.push(device);
        }
        if !devices.is_empty() {
            let expect = devices.iter().filter_map(|device| device.locator.as_ref().cloned()).collect();
            self.agent.rescan_pci(expect).await?;
        }
        Ok(devices)
    }

    fn attach(&self, disk: &Disk) -> Result<message::Device, LendError> {
        let path = &disk.node;
        let file = std::fs::File::options()
            .read(true)
            .write(!disk.read_only)
            .open(path)
            .map_err(|source| LendError::Open { path: path.clone(), source })?;
        let attached = self
            .vm
            .0
            .attach(kiai_vmm::DeviceConfig::Block {
                disk: kiai_vmm::NamedFile { name: path.display().to_string(), file },
                read_only: disk.read_only,
                serial: format!("disk-{}-{}", disk.major, disk.minor),
            })
            .map_err(|source| LendError::Attach { path: path.clone(), source })?;
        let mut locator = message::DeviceLocator::new();
        locator.set_pci_path(attached.pci_path);
        let mut device = message::Device::new();
        device.locator = Some(locator).into();
        device.container_path = disk.container_path.display().to_string();
        device.kind = "b".into();
        device.host_major = disk.major;
        device.host_minor = disk.minor;
        Ok(device)
    }

    /// Ends the guest in good order: its file systems are synced before the machine stops. A guest that does not
    /// answer is stopped all the same.
    pub async fn shut_down(&self) {
        self.endings.expect();
        if self.endings.ended().is_none()
            && let Err(error) = self.agent.destroy_sandbox().await
        {
            tracing::warn!(error = %crate::failure::chain(&error), "the guest did not end in good order");
        }
        let vm = self.vm.0.clone();
        // Blocks while the threads of the machine end.
        if tokio::task::spawn_blocking(move || vm.stop()).await.is_err() {
            tracing::error!("stopping the microVM panicked");
        }
    }
}

/// A machine that is stopped when it is let go, though somebody may still wait for its end.
struct Machine(VmHandle);

impl Drop for Machine {
    fn drop(&mut self) {
        let vm = self.0.clone();
        // Stopping joins threads, which an async task must not wait for.
        let spawned = std::thread::Builder::new().name("stop".into()).spawn(move || vm.stop());
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread to stop the microVM on");
            self.0.stop();
        }
    }
}
