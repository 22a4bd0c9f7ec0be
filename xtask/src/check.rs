//! `cargo xtask check`: everything that can be said of the code without running a microVM.

use anyhow::{Context, Result};

use crate::{step, tidy, workspace};

/// The package of the end-to-end tests, which need a machine for microVMs.
pub(crate) const END_TO_END: &str = "kiai-tests";

/// Format, house rules, lints, documentation, unit tests; warnings are errors. Stops at the first that fails.
///
/// Returns the tests that said they cannot run here, and why.
pub(crate) fn all() -> Result<Vec<(String, String)>> {
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
