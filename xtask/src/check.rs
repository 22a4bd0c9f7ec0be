//! `cargo xtask check`: everything that can be said of the code without running a microVM.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{dependencies, fuzz, sanitize, step, tidy, workspace};

/// The package of the end-to-end tests, which need a machine for microVMs.
pub(crate) const END_TO_END: &str = "kiai-tests";

/// Options of `cargo xtask check`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only ask whether a dependency has a known vulnerability (cargo-deny and its list, which need the network)
    #[arg(long)]
    advisories: bool,
    /// Only run the unit tests of devices and file systems under ThreadSanitizer and Miri (the nightly compiler, which
    /// rustup installs, and a quarter of an hour)
    #[arg(long, conflicts_with = "advisories")]
    sanitize: bool,
}

/// What these options ask for.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.advisories {
        return dependencies::advisories();
    }
    if arguments.sanitize {
        return sanitize::run();
    }
    for (test, reason) in all()? {
        step::say(&format!("skipped: {test}: {reason}"));
    }
    Ok(())
}

/// Format, house rules, lints, documentation, unit tests; warnings are errors. Stops at the first that fails.
///
/// Returns the tests that said they cannot run here, and why.
pub(crate) fn all() -> Result<Vec<(String, String)>> {
    let with = |mut command: Command, arguments: &str| {
        command.args(arguments.split_whitespace());
        command
    };
    let cargo = |arguments| with(workspace::cargo(), arguments);
    let tool = |arguments| with(workspace::tool(), arguments);
    step::run("checking the format", &mut tool("fmt --all --check"))?;
    tidy::check()?;
    step::say(
        "known vulnerabilities of dependencies: `cargo xtask check --advisories` looks them up, this does not",
    );
    step::run("clippy", &mut tool("clippy --locked --workspace --all-targets -- -D warnings"))?;
    fuzz::lint()?;
    step::run(
        "documentation",
        cargo("doc --workspace --no-deps --document-private-items")
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"),
    )?;
    step::say("unit tests");
    let skips = tempfile::NamedTempFile::new()?;
    step::show(
        cargo(&format!("test --quiet --workspace --exclude {END_TO_END}"))
            .env(kiai_skip::SKIPS, skips.path()),
    )?;
    read_skips(&std::fs::read_to_string(&skips)?)
}

/// The tests that said they cannot run, from the lines of `kiai_skip`.
fn read_skips(lines: &str) -> Result<Vec<(String, String)>> {
    let read = |line: &str| {
        let skip: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let field = |name: &str| skip[name].as_str().unwrap_or_default().to_owned();
        Ok((field("test"), field("reason")))
    };
    lines.lines().map(read).collect()
}
