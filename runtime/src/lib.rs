//! The host side of Kiai.

pub mod spec;
pub mod store;
