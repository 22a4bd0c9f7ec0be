//! One container of a sandbox: its creation, and the requests it serves until it is removed.
//!
//! `create` tells the whole story of a container; `process` is its init and every process run in it, `lifecycle` the
//! states of each and their changes, `table` what there is by id; `plug` is what comes and goes meanwhile, `batch`
//! what that comes to. Knows no containerd message: `shim` decodes, and publishes what is reported through
//! [`Report`].

mod batch;
mod create;
pub mod devices;
mod error;
pub mod io;
mod lifecycle;
mod limits;
mod mounts;
mod os;
mod plug;
mod process;
mod table;
mod task;

#[cfg(test)]
mod interleaved;

pub use batch::Plug;
pub use batch::PlugVolume;
pub use create::CreateError;
pub use create::CreateOptions;
pub use create::create;
pub use error::TaskError;
pub use plug::Unplug;
pub use process::Exit;
pub use process::Process;
pub use process::ProcessState;
pub use table::NoEntry;
pub use table::Table;
pub use task::Container;
pub use task::Removed;

/// What happens to a container, told in the order in which it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A container was created.
    Created,
    /// Its init runs.
    Started,
    /// A process was registered to be run in it.
    ExecAdded {
        /// Its name.
        exec_id: String,
    },
    /// That process runs.
    ExecStarted {
        /// Its name.
        exec_id: String,
    },
    /// A process ended; the init's name is empty.
    Exited {
        /// Its name.
        exec_id: String,
        /// How it ended.
        exit: Exit,
    },
    /// The guest's kernel ran out of the memory the container may use.
    OutOfMemory,
    /// Frozen.
    Paused,
    /// Thawed.
    Resumed,
    /// Gone.
    Removed {
        /// How its init ended.
        exit: Exit,
    },
}

/// Where reports go. Must not block.
pub type Reporter = std::sync::Arc<dyn Fn(Report) + Send + Sync>;
