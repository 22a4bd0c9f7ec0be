//! `cargo xtask setup`: everything a fresh Debian machine with Rust lacks.

use anyhow::Result;

use crate::lab::{iommufd, root};
use crate::{apt, image, kernel, step, workspace};

/// The Debian packages the project builds and tests with, each with its reason.
const PACKAGES: &str = "xtask/packages.txt";
/// What `setup` makes beside, and how long it takes on two cores.
const ARTIFACTS: &str = "then come, once, in the cache: the guest kernel (7 minutes), test images, and for the lab an \
                         emulator, two kernels and a root disk (6 minutes)";

/// Options of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only say what would be installed and made
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// A line of the list of packages.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    package: String,
    reason: String,
}

/// Installs the Debian packages that are missing, and says which and why before it does. Costs milliseconds when none
/// is.
pub(crate) fn packages() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    step::say("Debian packages are missing, and are installed now:");
    tell(&missing);
    apt::install(&missing.into_iter().map(|wanted| wanted.package).collect::<Vec<_>>())
}

/// Says what `setup` would do.
pub(crate) fn dry_run() -> Result<()> {
    let missing = missing()?;
    if missing.is_empty() {
        step::say("no Debian package is missing");
    } else {
        step::say("Debian packages are missing, and would be installed:");
        tell(&missing);
    }
    step::say(ARTIFACTS);
    Ok(())
}

/// Makes every artifact that the other chores use and that does not depend on the project's own code.
pub(crate) fn artifacts() -> Result<()> {
    step::say(ARTIFACTS);
    kernel::artifact()?;
    image::artifact()?;
    iommufd::kernel()?;
    root::disk(&root::kernel()?).map(drop)
}

fn missing() -> Result<Vec<Wanted>> {
    let mut wanted = wanted(&workspace::read(PACKAGES)?);
    let names: Vec<String> = wanted.iter().map(|wanted| wanted.package.clone()).collect();
    let missing = apt::missing(&names)?;
    wanted.retain(|wanted| missing.contains(&wanted.package));
    Ok(wanted)
}

fn tell(packages: &[Wanted]) {
    for Wanted { package, reason } in packages {
        eprintln!("  {package:<28} {reason}");
    }
}

/// The packages of a list. The reason of one stands behind it, or else above its group.
fn wanted(list: &str) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    let mut group = "";
    for line in list.lines().map(str::trim) {
        match line.split_once('#') {
            Some(("", reason)) => group = reason.trim(),
            Some((package, reason)) => {
                wanted.push(Wanted { package: package.trim().into(), reason: reason.trim().into() });
            }
            None if line.is_empty() => group = "",
            None => wanted.push(Wanted { package: line.into(), reason: group.into() }),
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_its_own_reason_or_that_of_its_group() {
        let list = "# About the file.\n\n# Building.\ngit\nlz4   # unpacks\n\nqemu\n";
        let of = |package: &str, reason: &str| Wanted { package: package.into(), reason: reason.into() };
        assert_eq!(wanted(list), [of("git", "Building."), of("lz4", "unpacks"), of("qemu", "")]);
    }

    #[test]
    fn every_package_of_this_project_has_a_reason() {
        for wanted in wanted(&workspace::read(PACKAGES).unwrap()) {
            assert!(!wanted.reason.is_empty(), "{}", wanted.package);
        }
    }
}
