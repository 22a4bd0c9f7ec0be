//! The microVM of a pod: booted, called through its agent, shut down. One per process.
//!
//! Has the machine, the devices assigned to containers, the agent and the vsock ports. Knows nothing of containerd,
//! and of containers only their devices and limits. Names no KVM type.

mod alive;
mod assign;
mod assignments;
mod boot;
mod bus;
mod end;
mod os;
mod reclaim;
mod resize;
mod shared;
pub mod template;
mod vfio;

#[cfg(test)]
mod interleaved;

use std::path::PathBuf;
use std::sync::Arc;

use kiai_vmm::VmHandle;
use kiai_vmm::vsock::VsockPorts;

use crate::agent::Agent;
use crate::agent::AgentError;
use crate::agent::message;
use crate::host::Network;
use crate::host::NetworkError;
use crate::host::network;
use crate::plan::Bounds;
use crate::plan::Limits;

pub use alive::DeadGuest;
pub use assign::Assignment;
pub use assign::HostDevices;
pub use assign::VolumeDevice;
pub use boot::SandboxBootError;
pub use boot::boot;
pub use end::EndWatch;
pub use end::SandboxEnd;
pub use resize::GrowError;
pub use resize::ResizeError;
pub use shared::SharedDirectory;

/// A booted microVM whose agent answers. Dropping it stops the machine.
pub struct Sandbox {
    /// The connection to the agent in the guest.
    pub agent: Agent,
    /// The host's side of the guest's vsock device.
    pub ports: Arc<VsockPorts>,
    /// Tells when and how the machine ends.
    pub end: EndWatch,
    /// How large the machine can be.
    bounds: Bounds,
    /// The limits of all its containers together; locked while they change.
    pod: tokio::sync::Mutex<Limits>,
    /// The CPUs that the guest did not boot with.
    cpus: resize::FirstCpus,
    vm: Machine,
    /// The pod's network namespace, and the number of queues of each interface.
    network: (Option<PathBuf>, usize),
    groups: vfio::OpenGroups,
    /// The devices that are assigned to its containers.
    assignments: assignments::Assignments<kiai_vmm::DeviceId>,
}

/// Why a device of the host could not be assigned.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// The node of a block device cannot be opened.
    #[error("open block device {path}")]
    Open {
        /// On the host.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The machine refuses a block device.
    #[error("attach block device {path} to the microVM")]
    Attach {
        /// On the host.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        source: kiai_vmm::AttachError,
    },
    /// Another container of the sandbox has the disk with another access mode, and the guest has one disk for both.
    #[error(
        "block device {path} is assigned to another container {}; ask for the same access, or unplug it there first",
        if *.read_only { "writable" } else { "read-only" }
    )]
    AccessConflict {
        /// On the host.
        path: std::path::PathBuf,
        /// This request is for a read-only disk.
        read_only: bool,
    },
    /// Another container of the sandbox has the PCI function.
    #[error("PCI function {0} is assigned to another container; unplug it there first")]
    FunctionAssigned(String),
    /// The machine refuses a network interface.
    #[error("attach network interface {name} to the microVM")]
    Nic {
        /// Its name in the pod.
        name: String,
        /// The reason.
        #[source]
        source: kiai_vmm::AttachError,
    },
    /// The guest has the interface already.
    #[error("network interface {0} is plugged in already")]
    InterfaceAssigned(String),
    /// The machine refuses the virtio-fs device of a volume.
    #[error("attach the virtio-fs device of a volume to the microVM")]
    Volume(#[source] kiai_vmm::AttachError),
    /// A VFIO node of a PCI function cannot be opened.
    #[error("open VFIO node {path}")]
    Vfio {
        /// On the host.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The machine refuses a PCI function.
    #[error("attach a PCI function to the microVM")]
    Function(#[source] kiai_vmm::AttachError),
    /// The thread that attaches devices panicked.
    #[error("attaching a device panicked: {0}")]
    Panicked(String),
    /// The guest did not find the device.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl Sandbox {
    /// Assigns devices of the host: attaches them to the guest's bus, unless they are there, and has the guest find
    /// them. Returns the assignment, and the message that tells the agent of each disk and function. On an error none
    /// of them is assigned.
    pub async fn assign(
        &self,
        wanted: HostDevices<'_>,
    ) -> Result<(Assignment, Vec<message::DeviceAssignment>), AssignError> {
        self.assignments.assign(self, wanted).await
    }

    /// Takes over more interfaces of the pod, by name; an error if the sandbox has no network.
    pub async fn take_over(&self, interfaces: Vec<String>) -> Result<Network, NetworkError> {
        let [first, ..] = &interfaces[..] else { return Ok(Network::default()) };
        let (path, queues) = self.network.clone();
        let Some(path) = path else {
            return Err(NetworkError::Interface { name: first.clone(), reason: "does not exist" });
        };
        let work = move || network::take_over(&path, queues, Some(&interfaces));
        let panicked = |_| NetworkError::Socket(std::io::Error::other("the thread panicked"));
        tokio::task::spawn_blocking(work).await.map_err(panicked)?
    }

    /// Unassigns devices: has the guest release those that no other container has, and detaches them, even if the guest
    /// does not answer.
    pub async fn unassign(&self, assignment: Assignment) {
        self.assignments.unassign(self, assignment).await;
    }

    /// Shuts the guest down: its file systems are synced before the machine stops. A guest that does not answer is
    /// stopped all the same.
    pub async fn shut_down(&self) {
        self.end.expect();
        if self.end.ended().is_none()
            && let Ok(Err(error)) = self.unless_dead(self.agent.destroy_sandbox()).await
        {
            tracing::warn!(error = %crate::failure::chain(&error), "the guest did not shut down cleanly");
        }
        let vm = self.vm.0.clone();
        // Blocks until the threads of the machine have ended.
        if tokio::task::spawn_blocking(move || vm.stop()).await.is_err() {
            tracing::error!("stopping the microVM panicked");
        }
    }
}

/// A machine that is stopped when it is dropped, even while a thread waits for its end.
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
