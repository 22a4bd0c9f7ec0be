//! `cargo xtask check`: everything that can be said of the code without running a microVM.

use std::process::Command;

use anyhow::Result;

use crate::{dependencies, fuzz, step, tidy, workspace};

/// The package of the end-to-end tests, which need a machine for microVMs.
pub(crate) const END_TO_END: &str = "kiai-tests";

/// Options of `cargo xtask check`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only ask whether a dependency has a known vulnerability (cargo-deny and its list, which need the network)
    #[arg(long)]
    advisories: bool,
}

/// What these options ask for.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.advisories { dependencies::advisories() } else { all() }
}

/// Format, house rules, lints, documentation, unit tests; warnings are errors. Stops at the first that fails.
pub(crate) fn all() -> Result<()> {
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
    step::show(&mut cargo(&format!("test --quiet --workspace --exclude {END_TO_END}")))
}
