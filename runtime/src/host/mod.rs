//! The host: facts for plans, and a sandbox's effects on it (mounts, taps, cgroup).
//!
//! This module decides nothing. Every effect is undone by dropping the value that stands for it, or ends with the
//! process.

pub mod cgroup;
pub mod facts;
pub mod inside;
pub mod mount;
pub mod namespaces;
pub mod network;
mod overlay;
pub mod pci;
pub mod process;
mod redirect;
pub mod rootfs;
mod tap;

pub use mount::MountError;
pub use mount::Mounted;
pub use network::Network;
pub use network::NetworkError;
