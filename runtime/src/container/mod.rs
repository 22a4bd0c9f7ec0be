//! One container of a sandbox: its creation, and the requests it serves until it is removed.
//!
//! `create` creates a container; `process` is its init or a process run in it later, `lifecycle` the states of each
//! process, `table` the containers and processes by id; `hooks` programs of the host that a spec names; `plug` plugs volumes, devices and interfaces, by the plans of
//! `plug_plan`. Knows no message of containerd: `shim` decodes requests, and publishes each [`Report`].

mod create;
pub mod devices;
mod error;
mod hooks;
pub mod io;
mod lifecycle;
mod limits;
mod mounts;
mod os;
mod plug;
mod plug_plan;
mod process;
mod table;
mod task;

#[cfg(test)]
mod interleaved;

pub use create::CreateError;
pub use create::CreateOptions;
pub use create::create;
pub use error::TaskError;
pub use hooks::HookError;
pub use hooks::Hooks;
pub use plug::UnplugOptions;
pub use plug_plan::PlugOptions;
pub use plug_plan::PlugVolume;
pub use process::Exit;
pub use process::Process;
pub use process::ProcessState;
pub use table::NoEntry;
pub use table::Table;
pub use task::Container;
pub use task::Removed;

/// An event of a container; events are reported in the order in which they happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The container was created.
    Created,
    /// Its init was started.
    Started,
    /// A process to be run in it was registered.
    ExecAdded {
        /// The process's id.
        exec_id: String,
    },
    /// A registered process was started.
    ExecStarted {
        /// The process's id.
        exec_id: String,
    },
    /// A process ended.
    Exited {
        /// The process's id; empty for the init.
        exec_id: String,
        /// How the process ended.
        exit: Exit,
    },
    /// The guest's kernel ran out of the memory the container may use.
    OutOfMemory,
    /// The container was frozen.
    Paused,
    /// The container was thawed.
    Resumed,
    /// The container was removed.
    Removed {
        /// How its init ended.
        exit: Exit,
    },
}

/// Receives reports. Must not block.
pub type Reporter = std::sync::Arc<dyn Fn(Report) + Send + Sync>;
