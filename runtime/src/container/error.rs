//! Why something cannot be done to a container or a process.

use crate::agent::AgentError;
use crate::cdi::CdiError;
use crate::host::MountError;
use crate::host::NetworkError;
use crate::plan::PlanError;
use crate::sandbox::AssignError;
use crate::sandbox::ResizeError;

use super::io::StdioError;

/// The request was not carried out; nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// No container of this id.
    #[error("container {0}: not found")]
    NoContainer(String),
    /// No process of this id in the container.
    #[error("container {container_id}: process {exec_id}: not found")]
    NoProcess {
        /// The container.
        container_id: String,
        /// The process.
        exec_id: String,
    },
    /// It has ended.
    #[error("{0}: process already finished")]
    Finished(String),
    /// The id is taken.
    #[error("{0}: already exists")]
    Exists(String),
    /// Not in this state.
    #[error("{what}: cannot {request} while it is {state}")]
    State {
        /// Container or process.
        what: String,
        /// What was asked.
        request: &'static str,
        /// Where it is in its life.
        state: &'static str,
    },
    /// The request itself is malformed.
    #[error("{what}: {reason}")]
    Malformed {
        /// Which part.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A bug of ours: the message is the panic's.
    #[error("{0}")]
    Panicked(String),
    /// Standard streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The guest.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The machine could not follow the limits.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// Not among what was plugged in.
    #[error("container {container_id}: {what}: not plugged in")]
    NotPlugged {
        /// The container.
        container_id: String,
        /// What was to be unplugged.
        what: String,
    },
    /// What cannot be plugged in.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Devices of vendors.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// A volume.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// An interface of the pod.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The machine or its guest does not take a device.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// The pod ends, or was told to.
    #[error("container {0}: the pod is shutting down")]
    ShuttingDown(String),
    /// The microVM is over.
    #[error("the sandbox has ended")]
    SandboxEnded,
}
