//! The microVM of a pod: booted, asked through its agent, ended. One per process.
//!
//! Knows nothing of containerd and little of containers: it has the machine, the shared directory, the agent
//! and its vsock ports. Names no KVM type.

mod alive;
mod boot;
mod bus;
mod desk;
mod ending;
mod give_back;
mod lend;
mod os;
mod pass;
mod resize;
mod shared;

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
pub use boot::BootError;
pub use boot::boot;
pub use ending::Ended;
pub use ending::Endings;
pub use lend::Loan;
pub use lend::Share;
pub use lend::Wanted;
pub use resize::GrowError;
pub use resize::ResizeError;
pub use shared::SharedDirectory;

/// A booted microVM whose agent answers. Dropping it stops the machine.
pub struct Sandbox {
    /// Its agent.
    pub agent: Agent,
    /// The host's side of its vsock.
    pub ports: Arc<VsockPorts>,
    /// Its end, when that comes.
    pub endings: Endings,
    /// How large it can be.
    bounds: Bounds,
    /// What its containers may use together; locked while that changes.
    pod: tokio::sync::Mutex<Limits>,
    vm: Machine,
    /// Its network namespace, and how many queues an interface of it gets.
    network: (Option<PathBuf>, usize),
    groups: pass::Groups,
    /// What is lent.
    desk: desk::Desk<kiai_vmm::DeviceId>,
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
    /// Another container of the sandbox has it, and the guest has one of it.
    #[error("block device {path}: lent already, {}", if *.read_only { "to be written to" } else { "to be read only" })]
    OtherMode {
        /// On the host.
        path: std::path::PathBuf,
        /// It is asked for to be read only.
        read_only: bool,
    },
    /// Another container of the sandbox has it.
    #[error("PCI function {0}: lent to another container")]
    Taken(String),
    /// The machine would not take an interface.
    #[error("network interface {name}")]
    Nic {
        /// Its name in the pod.
        name: String,
        /// The reason.
        #[source]
        source: kiai_vmm::AttachError,
    },
    /// The guest has it already.
    #[error("network interface {0}: plugged in already")]
    InterfaceTaken(String),
    /// The machine would not take a shared directory.
    #[error("attach a volume")]
    Share(#[source] kiai_vmm::AttachError),
    /// The VFIO nodes of a PCI function cannot be opened.
    #[error("VFIO: {path}")]
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
    /// Puts devices of the host on the guest's bus and has the guest find them; returns the loan, and what to
    /// tell the agent of each. On an error none of them is there.
    pub async fn lend(&self, wanted: Wanted<'_>) -> Result<(Loan, Vec<message::Device>), LendError> {
        self.desk.lend(self, wanted).await
    }

    /// Takes over further interfaces of the pod, by name. A sandbox without a network has none.
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

    /// Has the guest let go of devices and takes them off its bus. A guest that does not answer loses them all
    /// the same.
    pub async fn take_back(&self, loan: Loan) {
        self.desk.take_back(self, loan).await;
    }

    /// Ends the guest in good order: its file systems are synced before the machine stops. A guest that does not
    /// answer is stopped all the same.
    pub async fn shut_down(&self) {
        self.endings.expect();
        if self.endings.ended().is_none()
            && let Ok(Err(error)) = self.unless_dead(self.agent.destroy_sandbox()).await
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
