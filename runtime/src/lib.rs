//! The host side of Kiai.
pub mod config;
pub mod plan;
