//! The errors of requests to a container or a process.

use crate::agent::AgentError;
use crate::cdi::CdiError;
use crate::host::MountError;
use crate::host::NetworkError;
use crate::plan::PlanError;
use crate::sandbox::AssignError;
use crate::sandbox::ResizeError;

use super::HookError;
use super::io::StdioError;

/// Why a request was not carried out; nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The pod has no container with this id.
    #[error("container {0}: not found")]
    NoContainer(String),
    /// The container has no process with this id.
    #[error("container {container_id}: process {exec_id}: not found")]
    NoProcess {
        /// The container's id.
        container_id: String,
        /// The process's id.
        exec_id: String,
    },
    /// The process has ended already.
    #[error("{0}: process already finished")]
    Finished(String),
    /// The id, the path or the CDI device is taken.
    #[error("{0}: already exists")]
    Exists(String),
    /// The container or process is in a state in which it cannot serve the request.
    #[error("{object}: cannot {request} while it is {state}")]
    State {
        /// The container or process.
        object: String,
        /// The request, as a verb.
        request: &'static str,
        /// The state it is in.
        state: &'static str,
    },
    /// A part of the request is malformed.
    #[error("{part}: {reason}")]
    Malformed {
        /// The part of the request.
        part: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A bug in the runtime: a thread panicked, with this message.
    #[error("{0}")]
    Panicked(String),
    /// A standard stream cannot be opened.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A poststart hook failed; the container was killed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The agent refused, or did not answer.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The machine's size could not follow the limits.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// The item to be unplugged was not plugged in.
    #[error("container {container_id}: {item} is not plugged in; see kiai inspect")]
    NotPlugged {
        /// The container's id.
        container_id: String,
        /// The volume, device or interface.
        item: String,
    },
    /// The devices or volumes to be plugged in cannot be provided.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A CDI device cannot be provided.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// A volume cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// An interface of the pod cannot be taken over.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A device cannot be assigned.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// The pod is shutting down.
    #[error("container {0}: the pod is shutting down")]
    ShuttingDown(String),
    /// The microVM has ended.
    #[error("the sandbox has ended")]
    SandboxEnded,
}
