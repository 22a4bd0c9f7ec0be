//! What the runtime reads of the host and does to it: facts for plans, mounts, namespaces.

pub mod facts;
pub mod mount;
