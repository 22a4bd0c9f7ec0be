//! The host side of Kiai.
pub mod agent;
pub mod config;
pub mod host;
pub mod plan;
