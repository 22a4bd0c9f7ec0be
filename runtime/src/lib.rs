//! The host side of Kiai.
pub mod agent;
pub mod config;
pub mod container;
pub mod host;
pub mod plan;
pub mod sandbox;

/// An error with everything that caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
