//! The shim: one process a pod, serving containerd's Task service on a socket (containerd `core/runtime/v2`).
//!
//! `bootstrap` gets the process going, `task` decodes requests, `service` holds what there is, `events` tells
//! containerd. The CLI is one more client of the same service.

mod bootstrap;
mod events;
mod metrics;
mod service;
mod task;

pub use bootstrap::LaunchOptions;
pub use bootstrap::delete;
pub use bootstrap::launch;
pub use bootstrap::main;

/// Name by which the binary knows that it is the shim.
pub const SHIM_NAME: &str = "containerd-shim-kiai-v2";
