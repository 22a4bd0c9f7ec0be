//! The helpers: the agent executes itself to build containers, to add processes to them, and to change their mounts and
//! device nodes ([`plug`]).
//!
//! libcontainer clones with raw system calls, which a process with threads must not do, and which cannot enter a
//! mount namespace either. So the serving process does neither; it starts `kiai-agent oci`, a short-lived process
//! with one thread, hands it a [`Request`] and descriptors on a socket ([`channel`]), and takes an [`Answer`]. The
//! container's init and the processes of `exec` are left to PID 1, which reaps them.

pub mod channel;
mod execute;
mod path;
mod payload;
mod plug;
pub mod pod_init;
mod role;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use execute::{Built, OciError, RoleProcess};
pub use plug::{Changes, DeviceNode, Volume};
pub use role::main;

/// A request to a helper. The descriptors that come with it are listed at each variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Build a container up to the point where its init waits to be started (OCI `created`).
    ///
    /// Descriptors: first the write end of the start pipe (see [`Built::started`]), then stdin, stdout and
    /// stderr unless the specification asks for a terminal.
    Create {
        /// The container's id.
        id: String,
        /// Directory of `config.json`.
        bundle: PathBuf,
        /// Directory in which libcontainer keeps its state, one folder per id.
        state: PathBuf,
        /// The specification asks for a terminal.
        terminal: bool,
    },
    /// Start another process in a running container.
    ///
    /// Descriptors: stdin, stdout and stderr unless `terminal`.
    Exec {
        /// The container's id.
        id: String,
        /// As in [`Request::Create`], but of this request alone: libcontainer leaves sockets behind in it.
        state: PathBuf,
        /// A file with the OCI `process` as JSON.
        process: PathBuf,
        /// The process asks for a terminal.
        terminal: bool,
    },
    /// Make a pid namespace for containers that share one, with an init of its own ([`pod_init`]). No descriptors.
    PodInit,
    /// Make device nodes and mount volumes in a container, in this order, all or none.
    ///
    /// Descriptors: the container's init, a pidfd.
    Plug(Changes),
    /// Unmount volumes of a container and remove device nodes, in this order, all or none. Descriptors as for
    /// [`Request::Plug`].
    Unplug(Changes),
}

/// A helper's answer. The master side of a terminal comes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Pid of the process in the guest's root namespace.
    Pid(i32),
    /// The request was carried out.
    Done,
    /// The container's state does not allow the request, with the reason; nothing was changed.
    FailedPrecondition(String),
    /// The request failed, with the reason; nothing was changed.
    Failed(String),
}
