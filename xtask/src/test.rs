//! `cargo xtask test`: the checks, then the end-to-end tests with real microVMs.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::build::{self, SHIM};
use crate::e2e::{self, Reviewed, Selection};
use crate::{check, containerd, fuzz, image, kernel, rootfs, step, venue};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Skip the checks and unit tests
    #[arg(long)]
    only_e2e: bool,
    /// A skipped test fails the run, unless tests/skips.toml names it
    #[arg(long)]
    no_skips: bool,
    /// Only the end-to-end tests that failed in the last run
    #[arg(long, conflicts_with = "filters")]
    rerun_failed: bool,
    /// Fuzz instead: each target for a minute, or for so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60", conflicts_with = "only_e2e")]
    fuzz: Option<u64>,
    /// Parts of names of end-to-end tests; with `--fuzz`, of targets
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

/// Runs everything; the exit code says whether all of it passed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(seconds) = arguments.fuzz {
        return fuzz::run(seconds, &arguments.filters);
    }
    let reviewed = Reviewed::read()?;
    let mut skipped = Vec::new();
    if !arguments.only_e2e && !arguments.rerun_failed {
        skipped = check::all()?;
    }
    let selection = Selection { filters: arguments.filters.clone(), failed: arguments.rerun_failed };
    let summary = e2e::run(venue::choose()?, &selection)?;
    skipped.extend(summary.skipped);

    let mut refused = 0;
    for (test, reason) in &skipped {
        let known = reviewed.allows(test);
        refused += usize::from(arguments.no_skips && !known);
        let word = if known { "skipped, as tests/skips.toml says" } else { "skipped" };
        step::say(&format!("{word}: {test}: {reason}"));
    }
    let (passed, failed) = (summary.passed, summary.failed);
    println!("{passed} passed, {failed} failed, {} skipped", skipped.len());
    if e2e::passes(failed, refused, summary.repetitions) {
        return Ok(ExitCode::SUCCESS);
    }
    if refused > 0 {
        step::say(&format!("{refused} tests were skipped that tests/skips.toml does not name"));
    }
    if summary.repetitions > 0 {
        step::say(&format!("{} repetitions after the lab failed", summary.repetitions));
    }
    Ok(ExitCode::FAILURE)
}

/// Gives `command` on this machine what it would find in the lab. `folder` holds the two names of the binary.
pub(crate) fn environment(command: &mut Command, folder: &Path) -> Result<()> {
    let kiai = build::kiai()?;
    for name in ["kiai", SHIM] {
        std::os::unix::fs::symlink(&kiai, folder.join(name))?;
    }
    let Some(path) = std::env::var_os("PATH") else { bail!("PATH is not set") };
    let path = std::env::join_paths([folder.to_path_buf()].into_iter().chain(std::env::split_paths(&path)))?;
    command.env("PATH", path);
    command.env("KIAI_KERNEL", kernel::artifact()?.join("vmlinux"));
    command.env("KIAI_INITRD", rootfs::artifact()?);
    command.env("KIAI_TEST_IMAGES", image::artifact()?.folder());
    match containerd::newest() {
        Ok(folder) => drop(command.env(containerd::VARIABLE, folder)),
        Err(error) => step::say(&format!("tests without containerd 2: {error:#}")),
    }
    Ok(())
}
