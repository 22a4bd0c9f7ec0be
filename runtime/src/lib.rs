//! The host side of Kiai.

pub mod network;
pub mod spec;
pub mod store;
