//! `cargo xtask setup`: everything a fresh Debian machine with Rust lacks.

use anyhow::Result;

use crate::lab::{iommufd, root};
use crate::{apt, image, kernel, workspace};

/// The Debian packages the project builds and tests with, each with its reason.
const PACKAGES: &str = "xtask/packages.txt";

/// Installs the Debian packages that are missing. Costs milliseconds when none is.
pub(crate) fn packages() -> Result<()> {
    let missing = apt::missing(&workspace::read_list(PACKAGES)?)?;
    if missing.is_empty() { Ok(()) } else { apt::install(&missing) }
}

/// Makes every artifact that the other chores use and that does not depend on the project's own code.
pub(crate) fn artifacts() -> Result<()> {
    kernel::artifact()?;
    image::artifact()?;
    iommufd::kernel()?;
    root::disk(&root::kernel()?).map(drop)
}
