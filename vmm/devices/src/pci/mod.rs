//! PCI: one segment of functions behind ECAM (PCI Express 5.0 §7.2.2), each with its configuration space and
//! base address registers (PCI Local Bus 3.0 §6).
//!
//! The segment owns addresses; a function owns behaviour. virtio and VFIO functions are peers here.

pub mod config_space;
mod ecam;
pub mod function;
mod host_bridge;
pub mod msix;
pub mod segment;
