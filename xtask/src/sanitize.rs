//! `cargo xtask check --sanitize`: the unit tests of devices and file systems under ThreadSanitizer and under Miri.
//!
//! Both need the nightly compiler: ThreadSanitizer a standard library built with it, from the component `rust-src`;
//! Miri is a component itself. Checks of interleavings are left out of both: they switch stacks within a thread.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{step, workspace};

const TOOLCHAIN: &str = "nightly";
const COMPONENTS: [&str; 2] = ["rust-src", "miri"];
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
const DEVICES: &str = "kiai-devices";
const FILE_SYSTEMS: &str = "kiai-fs";
/// Modules of checks by `kiai-interleave`.
const INTERLEAVED: &str = "interleaved";
/// What ThreadSanitizer cannot know, with reasons.
const SUPPRESSIONS: &str = "xtask/tsan.supp";
/// Inputs of each property test under Miri, which takes a thousand times as long as a processor.
const FEW: &str = "4";
/// What Miri can run of the devices: it knows neither the mappings that guest memory is made of nor ioctls, and a walk
/// through a file system takes it minutes.
const WITHOUT_THE_HOST: [&str; 9] = [
    "bus::",
    "log_limit::",
    "pci::msix::",
    "vfio::layout::",
    "vfio::uapi::",
    "virtio::balloon::blocks::",
    "virtio::buffers::",
    "virtio::mem::blocks::",
    "virtio::vsock::packet::",
];

/// Runs both; the first that finds something ends it.
pub(crate) fn run() -> Result<()> {
    install()?;
    thread_sanitizer()?;
    miri()
}

/// Has rustup install the toolchain, newer than it was, if a component is missing.
fn install() -> Result<()> {
    let list = step::output(&mut rustup(&["component", "list", "--installed", "--toolchain", TOOLCHAIN]));
    if list.is_ok_and(|list| COMPONENTS.iter().all(|component| has(&list, component))) {
        return Ok(());
    }
    let mut install = rustup(&["toolchain", "install", TOOLCHAIN, "--profile", "minimal"]);
    install.args(COMPONENTS.iter().flat_map(|component| ["--component", component]));
    step::run("installing the nightly compiler with rust-src and miri", &mut install).with_context(|| {
        format!("check --sanitize needs rustup's {TOOLCHAIN} with {}", COMPONENTS.join(" and "))
    })
}

/// Whether a list of rustup's has a component, which has its platform behind its name where that matters.
fn has(list: &str, component: &str) -> bool {
    list.lines().any(|line| {
        line.strip_prefix(component).is_some_and(|rest| rest.is_empty() || rest.starts_with("-x86_64"))
    })
}

fn rustup(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(arguments);
    command
}

/// The nightly cargo for some packages, with a target folder of its own.
fn cargo(arguments: &[&str], packages: &[&str]) -> Command {
    let mut command = rustup(&["run", TOOLCHAIN, "cargo"]);
    command.current_dir(workspace::root()).args(arguments).arg("--locked");
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    command.arg("--target-dir").arg(workspace::target().join("sanitize"));
    // Cargo's own, of the toolchain that built this program.
    command.env_remove("CARGO").env_remove("RUSTC");
    command
}

fn thread_sanitizer() -> Result<()> {
    let test = |argument| {
        let mut command = cargo(&["test", argument], &[DEVICES, FILE_SYSTEMS]);
        command.args(["-Zbuild-std", "--target", PLATFORM, "--tests"]).env("RUSTFLAGS", "-Zsanitizer=thread");
        command
    };
    step::run("building tests with ThreadSanitizer", &mut test("--no-run"))?;
    step::say("unit tests under ThreadSanitizer");
    let suppressions = workspace::path(SUPPRESSIONS);
    let mut tests = test("--quiet");
    // One test at a time: memory that one unmaps and the next maps is one piece of memory to the sanitizer, which does
    // not see system calls that are made without libc.
    tests.args(["--", "--skip", INTERLEAVED, "--test-threads=1"]);
    step::show(tests.env("TSAN_OPTIONS", format!("suppressions={}", suppressions.display())))
}

fn miri() -> Result<()> {
    step::say("unit tests under Miri");
    let mut tests = cargo(&["miri", "test", "--quiet", "--lib"], &[DEVICES]);
    tests.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", FEW);
    step::show(tests.arg("--").args(WITHOUT_THE_HOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_found_by_their_whole_name() {
        let list = "miri-x86_64-unknown-linux-gnu\nrust-src\nrust-std-x86_64-unknown-linux-gnu\n";
        assert!(COMPONENTS.iter().all(|component| has(list, component)));
        assert!(!has(list, "rust"));
        assert!(!has("cargo-x86_64-unknown-linux-gnu\n", "miri"));
    }
}
