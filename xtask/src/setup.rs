//! `cargo xtask setup`: everything a fresh Debian machine with Rust lacks.

use anyhow::Result;

use crate::{apt, workspace};

/// The Debian packages the project builds and tests with, each with its reason.
const PACKAGES: &str = "xtask/packages.txt";

/// Installs the Debian packages that are missing. Costs milliseconds when none is.
pub(crate) fn packages() -> Result<()> {
    let missing = apt::missing(&workspace::read_list(PACKAGES)?)?;
    if missing.is_empty() { Ok(()) } else { apt::install(&missing) }
}
