//! containerd's shim (runtime v2): one process a pod, serving the Task service on a socket.
//!
//! `arguments`, `launch`, `start`, `serve`, `delete`, `info` are the binary's actions, `bootstrap` and `options` what
//! containerd tells a new shim; `pod` is the sandbox with its
//! containers, `task` and `sandbox_service` the services (decode, call, encode), `pod_sandbox` and `pod_config` the sandbox of
//! the latter, `report` and `events` publish events to containerd,
//! `afterwards` releases a container that runs in the background. containerd's `core/runtime/v2/README.md`.

mod afterwards;
mod arguments;
mod bootstrap;
mod caller;
mod connections;
mod delete;
mod events;
mod info;
mod launch;
mod options;
mod pod;
mod pod_config;
mod pod_sandbox;
mod report;
mod sandbox_service;
mod serve;
mod start;
mod task;
mod wire;

use std::io;
use std::io::Write;
use std::process::ExitCode;

use arguments::Action;
use arguments::Arguments;

use crate::failure::RpcError;
use crate::failure::RpcResult;

pub use afterwards::enter_mounts;
pub use delete::delete;
pub use launch::LaunchOptions;
pub use launch::launch;
pub(crate) use task::PLUG;
pub(crate) use task::RESOURCES;
pub(crate) use task::UNPLUG;

/// The name under which the binary is the shim.
pub const SHIM_NAME: &str = "containerd-shim-kiai-v2";

/// The variable with containerd's socket for events.
const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";

/// Files of the shim in its bundle.
const ADDRESS_FILE: &str = "address";
const PID_FILE: &str = "shim.pid";
const LOG_FILE: &str = "shim.log";
/// Marks that the shim is ending: it still answers, and needs its bundle for a moment.
const ENDING_FILE: &str = "shim.ending";
/// The path of the sandbox's cgroup, if no config.json has it.
const CGROUP_FILE: &str = "cgroup";

/// Runs the binary as the shim; `arguments` are those after the program's name.
pub fn main(arguments: &[String]) -> ExitCode {
    let result = Arguments::parse(arguments).and_then(|arguments| match arguments.action {
        Action::Start => start::start(&arguments),
        Action::Delete => delete::delete_role(&arguments),
        Action::Serve => serve::serve(&arguments),
        Action::Info => info::info_role(),
        Action::Version => version(),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // An error is ignored: standard error may be closed.
            let _ = writeln!(io::stderr(), "{SHIM_NAME}: {e}");
            ExitCode::FAILURE
        }
    }
}

fn version() -> RpcResult<()> {
    let text = format!("{SHIM_NAME}:\n  Version:  {}\n", env!("CARGO_PKG_VERSION"));
    io::stdout().write_all(text.as_bytes()).map_err(|e| RpcError::host("print the version", &e))
}
