//! `cargo xtask check --sanitize`: the unit tests of devices and file systems under ThreadSanitizer and under Miri.
//!
//! Both need the nightly compiler: ThreadSanitizer a standard library built with it, from the component `rust-src`, and
//! Miri is a component itself. Checks of interleavings are left out of both: they switch stacks within a thread.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{step, workspace};

const TOOLCHAIN: &str = "nightly";
const COMPONENTS: [&str; 2] = ["rust-src", "miri"];
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
const CRATES: [&str; 4] = ["--package", "kiai-devices", "--package", "kiai-fs"];
/// Modules of checks by `kiai-interleave`.
const INTERLEAVED: &str = "interleaved";
/// What ThreadSanitizer cannot know, with reasons.
const SUPPRESSIONS: &str = "xtask/tsan.supp";
/// Inputs of each property test under Miri, which takes a thousand times as long as a processor.
const FEW: &str = "4";

/// Runs both; the first that finds something ends it.
pub(crate) fn run() -> Result<()> {
    install()?;
    thread_sanitizer()?;
    miri()
}

/// Has rustup install what of the nightly toolchain is not there.
fn install() -> Result<()> {
    let installed =
        step::output(&mut rustup("component", &["list", "--installed", "--toolchain", TOOLCHAIN]));
    let missing: Vec<&str> = match &installed {
        Ok(list) => COMPONENTS.into_iter().filter(|component| !has(list, component)).collect(),
        Err(_) => COMPONENTS.to_vec(),
    };
    if missing.is_empty() {
        return Ok(());
    }
    let mut command = match installed {
        Ok(_) => rustup("component", &["add", "--toolchain", TOOLCHAIN]),
        Err(_) => rustup("toolchain", &["install", TOOLCHAIN, "--profile", "minimal", "--component"]),
    };
    let joined = missing.join(",");
    let names = if installed.is_ok() { missing } else { vec![joined.as_str()] };
    step::run(&format!("installing {joined} of the nightly compiler"), command.args(&names)).with_context(
        || format!("`check --sanitize` needs {} of rustup's {TOOLCHAIN} toolchain", COMPONENTS.join(" and ")),
    )
}

/// Whether a list of rustup's has a component, which has its platform behind its name where that matters.
fn has(list: &str, component: &str) -> bool {
    list.lines().any(|line| {
        line.strip_prefix(component).is_some_and(|rest| rest.is_empty() || rest.starts_with("-x86_64"))
    })
}

fn rustup(verb: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.arg(verb).args(arguments);
    command
}

/// The nightly cargo, with a target folder of its own.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = rustup("run", &[TOOLCHAIN, "cargo"]);
    command.current_dir(workspace::root()).args(arguments).arg("--locked").args(CRATES);
    command.arg("--target-dir").arg(workspace::target().join("sanitize"));
    // Cargo's own, of the toolchain that built this program.
    command.env_remove("CARGO").env_remove("RUSTC");
    command
}

fn thread_sanitizer() -> Result<()> {
    let build = |mut command: Command| {
        command.args(["-Zbuild-std", "--target", PLATFORM, "--tests"]).env("RUSTFLAGS", "-Zsanitizer=thread");
        command
    };
    step::run("building tests with ThreadSanitizer", &mut build(cargo(&["test", "--no-run"])))?;
    step::say("unit tests under ThreadSanitizer");
    let suppressions = workspace::path(SUPPRESSIONS);
    let mut tests = build(cargo(&["test", "--quiet"]));
    // One test at a time: memory that one unmaps and the next maps is one piece of memory to the sanitizer, which does
    // not see system calls that are made without libc.
    tests.args(["--", "--skip", INTERLEAVED, "--test-threads=1"]);
    step::show(tests.env("TSAN_OPTIONS", format!("suppressions={}", suppressions.display())))
}

fn miri() -> Result<()> {
    step::say("unit tests under Miri");
    let mut tests = cargo(&["miri", "test", "--quiet", "--lib"]);
    tests.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", FEW);
    step::show(tests.args(["--", "--skip", INTERLEAVED]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_found_by_their_whole_name() {
        let list = "cargo-x86_64-unknown-linux-gnu\nmiri-x86_64-unknown-linux-gnu\nrust-src\nrust-std-x86_64-unknown-linux-gnu\n";
        assert!(COMPONENTS.iter().all(|component| has(list, component)));
        assert!(!has(list, "rust"));
        assert!(!has("cargo-x86_64-unknown-linux-gnu\n", "miri"));
    }
}
