//! The host side of Kiai: shim, CLI, plans, sandboxes, images, host network. Names no KVM type.

pub mod config;
pub mod plan;
pub mod spec;
pub mod store;
