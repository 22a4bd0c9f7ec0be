//! `cargo xtask check`: everything that can be said of the code without running a microVM.

use anyhow::Result;

use crate::{step, tidy, workspace};

/// The package of the end-to-end tests, which need a machine for microVMs.
pub(crate) const END_TO_END: &str = "kiai-tests";

/// Format, house rules, lints, documentation, unit tests; warnings are errors. Stops at the first that fails.
pub(crate) fn all() -> Result<()> {
    let cargo = |arguments: &str| {
        let mut command = workspace::cargo();
        command.args(arguments.split_whitespace());
        command
    };
    step::run("checking the format", &mut cargo("fmt --all --check"))?;
    tidy::check()?;
    step::run("clippy", &mut cargo("clippy --workspace --all-targets -- -D warnings"))?;
    step::run(
        "documentation",
        cargo("doc --workspace --no-deps --document-private-items")
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"),
    )?;
    step::say("unit tests");
    step::show(&mut cargo(&format!("test --quiet --workspace --exclude {END_TO_END}")))
}
