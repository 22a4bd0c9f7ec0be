//! `cargo xtask test`: the checks, then the end-to-end tests with real microVMs.
//!
//! A test program runs as it is on this machine, or in a lab of its own: a kernel that one of them brings down takes
//! no other with it. The environment the tests find is the same in both places.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::build::{self, SHIM};
use crate::lab::{self, Lab, Machine};
use crate::place::{self, Place};
use crate::{cache, check, fuzz, image, kernel, rootfs, side_by_side, step, workspace};

/// How many labs may fail under one module before it counts as failed.
const LABS: u32 = 5;
/// How long one test program may take in the lab.
const LAB_LIMIT: Duration = Duration::from_secs(20 * 60);
pub(crate) const LAB_MEMORY_MIB: u32 = 6144;

/// Modules that are lent devices of the machine they run on: always in a lab, which has some to spare.
const LENT: [&str; 3] = ["devices", "plug", VFIO];
/// The one of them whose lab has an IOMMU.
const VFIO: &str = "vfio";

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Skip the checks and unit tests
    #[arg(long)]
    only_e2e: bool,
    /// Fuzz instead: each target for a minute, or for so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60", conflicts_with = "only_e2e")]
    fuzz: Option<u64>,
    /// Passed to every test program: a filter and options of libtest; with `--fuzz`, parts of targets' names
    #[arg(last = true, value_name = "FILTER")]
    arguments: Vec<String>,
}

/// Runs everything; the exit code says whether all of it passed.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(seconds) = arguments.fuzz {
        return fuzz::run(seconds, &arguments.arguments);
    }
    if !arguments.only_e2e {
        check::all()?;
    }
    let libtest = libtest_arguments(&arguments.arguments);
    let place = place::choose()?;
    let mut selected = Vec::new();
    for program in programs()? {
        if has_tests(&program, &libtest)? {
            selected.push(program);
        }
    }
    ensure!(
        !selected.is_empty(),
        "no end-to-end test is called like this: {}",
        arguments.arguments.join(" ")
    );
    let mut failed = Vec::new();
    for program in selected {
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        step::say(&format!("end-to-end: {name}"));
        match place {
            Place::Machine => {
                let skipped = LENT.iter().flat_map(|module| ["--skip".to_owned(), format!("{module}::")]);
                let here: Vec<String> = libtest.iter().cloned().chain(skipped).collect();
                if has_tests(&program, &here)? && !on_this_machine(&program, &here)? {
                    failed.push(name);
                }
                for module in LENT {
                    let only = [vec![format!("{module}::")], libtest.clone()].concat();
                    if (arguments.arguments.is_empty() || is_lent(&libtest)) && !in_the_labs(&program, &only)?
                    {
                        failed.push(module.to_owned());
                    }
                }
            }
            Place::Lab if !arguments.arguments.is_empty() => {
                if !in_the_labs(&program, &libtest)? {
                    failed.push(name);
                }
            }
            // A lab for each module: what one leaves behind, or a lab that dies, costs the others nothing.
            Place::Lab => failed.extend(side_by_side::run(&program, parts(&program)?)?),
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    step::say(&format!("failed: {}", failed.join(", ")));
    Ok(ExitCode::FAILURE)
}

/// One test at a time, unless the caller says otherwise: the tests count what is left behind on the machine.
fn libtest_arguments(given: &[String]) -> Vec<String> {
    let mut arguments = given.to_vec();
    if !given.iter().any(|argument| argument.starts_with("--test-threads")) {
        arguments.push("--test-threads=1".into());
    }
    arguments
}

/// Builds the test programs and returns where they are.
fn programs() -> Result<Vec<PathBuf>> {
    let build = ["test", "--package", check::END_TO_END, "--test", "e2e", "--no-run"];
    step::run("building the end-to-end tests", workspace::cargo().args(build))?;
    let messages = step::output(workspace::cargo().args(build).arg("--message-format=json"))?;
    let mut programs = executables(&messages)?;
    programs.sort();
    Ok(programs)
}

/// The executables of integration tests among cargo's messages.
fn executables(messages: &str) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for message in messages.lines() {
        let message: Value =
            serde_json::from_str(message).with_context(|| format!("cargo says: {message}"))?;
        let is_test =
            message["target"]["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
        if let Some(program) = message["executable"].as_str().filter(|_| is_test) {
            programs.push(program.into());
        }
    }
    Ok(programs)
}

/// Whether the tests these arguments name are of a module that is lent devices.
fn is_lent(libtest: &[String]) -> bool {
    LENT.iter().any(|module| names(libtest, module))
}

/// Whether these arguments name tests of a module.
fn names(libtest: &[String], module: &str) -> bool {
    libtest.iter().any(|argument| argument.split("::").next() == Some(module))
}

fn has_tests(program: &Path, libtest: &[String]) -> Result<bool> {
    let listing = step::output(Command::new(program).args(libtest).arg("--list"))?;
    Ok(listing.lines().any(|line| line.ends_with(": test")))
}

/// The modules of a test program, in order.
fn modules(program: &Path) -> Result<Vec<String>> {
    let listing = step::output(Command::new(program).arg("--list"))?;
    let mut modules: Vec<String> =
        listing.lines().filter_map(|line| Some(line.split_once("::")?.0.to_owned())).collect();
    modules.dedup();
    Ok(modules)
}

/// A module of a test program, and which kind of lab it runs in.
pub(crate) struct Part {
    pub(crate) module: String,
    /// The one whose kernel has iommufd.
    pub(crate) iommufd: bool,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.module)?;
        if self.iommufd { f.write_str(", through iommufd") } else { Ok(()) }
    }
}

/// The modules of a test program; what passes devices through is there once for each of the kernel's ways to do so.
fn parts(program: &Path) -> Result<Vec<Part>> {
    let ways = |module: String| {
        let newer = (module == VFIO).then(|| Part { module: module.clone(), iommufd: true });
        [Part { module, iommufd: false }].into_iter().chain(newer)
    };
    Ok(modules(program)?.into_iter().flat_map(ways).collect())
}

/// Runs tests in the lab, those of VFIO once for each of the kernel's ways.
fn in_the_labs(program: &Path, libtest: &[String]) -> Result<bool> {
    let passed = in_the_lab(program, libtest, false)?;
    if !names(libtest, VFIO) {
        return Ok(passed);
    }
    step::say(&format!("end-to-end: {}", Part { module: VFIO.into(), iommufd: true }));
    Ok(in_the_lab(program, libtest, true)? && passed)
}

/// Runs a test program in the lab. Emulated hardware virtualisation is not perfect: the lab's own kernel has been
/// seen to die of it, and so have guests', most of all where several run at once. A lab that failed, as opposed to a
/// test that did, is started once more, and said so. One that came to no end is the lab's fault once; twice is not.
pub(crate) fn in_the_lab(program: &Path, libtest: &[String], iommufd: bool) -> Result<bool> {
    let mut hung = false;
    for left in (0..LABS).rev() {
        let ended = once_in_the_lab(program, libtest, iommufd)?;
        let hangs = ended == ExitCode::from(lab::TIMED_OUT);
        if (hangs && hung) || (!hangs && ended != ExitCode::from(lab::FAILED)) {
            return Ok(ended == ExitCode::SUCCESS);
        }
        hung |= hangs;
        if left > 0 {
            step::say("the lab failed, not a test: once more");
        }
    }
    Ok(false)
}

fn once_in_the_lab(program: &Path, libtest: &[String], iommufd: bool) -> Result<ExitCode> {
    let inside = "/usr/local/bin/e2e";
    let mut lab = Lab::new([inside.to_owned()].into_iter().chain(libtest.iter().cloned()).collect());
    lab.put(&format!("{}:{inside}", program.display()))?;
    lab.put_project()?;
    let vfio = names(libtest, VFIO);
    let machine = Machine {
        cpus: 1,
        memory_mib: LAB_MEMORY_MIB,
        timeout: LAB_LIMIT,
        vfio,
        iommufd,
        mind_cpu_faults: true,
        ..Machine::default()
    };
    lab.start(&machine)
}

fn on_this_machine(program: &Path, libtest: &[String]) -> Result<bool> {
    let scratch = cache::scratch()?;
    let mut command = Command::new(program);
    command.args(libtest).current_dir(workspace::root());
    environment(&mut command, scratch.path())?;
    Ok(command.status().with_context(|| program.display().to_string())?.success())
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_integration_tests_are_run() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"]},"executable":"/t/lib-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":"/t/run-2"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":null}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executables(messages).unwrap(), [PathBuf::from("/t/run-2")]);
    }

    #[test]
    fn only_a_module_that_is_lent_devices_gets_them() {
        let lent = |filter: &str| is_lent(&[filter.to_owned(), "--test-threads=1".to_owned()]);
        assert!(lent("vfio::") && lent("vfio::a_disk") && lent("devices::"));
        assert!(!lent("run::") && !lent("vfio_like::x"));
    }

    #[test]
    fn the_callers_number_of_threads_wins() {
        let given = vec!["run".to_owned(), "--test-threads=4".to_owned()];
        assert_eq!(libtest_arguments(&given), given);
        assert_eq!(libtest_arguments(&[]), ["--test-threads=1"]);
    }
}
