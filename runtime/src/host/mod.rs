//! The host as it is: facts for plans, and the few effects a sandbox has on it (mounts, taps, cgroup).
//!
//! Carries out; decides nothing. Every effect is undone by the drop of the value that stands for it, or goes
//! with the process.

pub mod cgroup;
pub mod facts;
pub mod mount;
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
