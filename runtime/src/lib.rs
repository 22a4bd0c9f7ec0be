//! The host side of Kiai: shim, CLI, plans, sandboxes, images, host network. Names no KVM type.

pub mod agent;
pub mod config;
pub mod container;
pub mod failure;
pub mod host;
pub mod plan;
pub mod sandbox;
pub mod shim;
pub mod spec;
pub mod store;
