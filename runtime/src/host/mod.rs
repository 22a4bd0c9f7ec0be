//! What the runtime reads of the host and does to it: facts for plans, mounts, cgroups, network namespaces.

pub mod cgroup;
pub mod facts;
pub mod mount;
pub mod network;
pub mod tap;
