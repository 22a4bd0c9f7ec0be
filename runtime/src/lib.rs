//! The host side of Kiai: shim, CLI, plans, sandboxes, images, host network. Names no KVM type.

pub mod agent;
pub mod cdi;
pub mod check;
pub mod cli;
pub mod config;
pub mod container;
pub mod copy;
pub mod failure;
pub mod host;
pub mod image;
pub mod network;
pub mod plan;
pub mod resolver;
pub mod sandbox;
pub mod shim;
pub mod spec;
pub mod store;

#[cfg(test)]
mod interleaved;
