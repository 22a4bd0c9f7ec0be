//! End-to-end tests: every test in a process of its own, on this machine or in a lab that several tests share.
//!
//! `inside` runs where the tests run and reports events; `plan` says which test runs where; `worker` follows one lab;
//! `verdict` decides what the end of a test means; `report` writes it down. Knows nothing of what the tests test.

pub(crate) mod event;
pub(crate) mod inside;
mod plan;
mod queue;
mod report;
mod verdict;
mod worker;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::Machine;
use crate::venue::Venue;
use crate::{build, check, step, workspace};

pub(crate) use report::{Reviewed, Summary};
pub(crate) use verdict::passes;

/// What to run.
pub(crate) struct Selection {
    /// Parts of names; none: every test.
    pub(crate) filters: Vec<String>,
    /// Only what failed in the last run.
    pub(crate) failed: bool,
}

/// Memory of a lab that runs tests.
const LAB_MEMORY_MIB: u32 = 6144;

/// Runs the selected tests to their ends and writes the results down.
pub(crate) fn run(venue: Venue, selection: &Selection) -> Result<Summary> {
    let program = program()?;
    let mut cases = plan::cases(&tests(&program)?, venue);
    if selection.failed {
        let failed = report::failed_last_time()?;
        cases.retain(|case| failed.contains(&case.to_string()));
        ensure!(!cases.is_empty(), "no end-to-end test failed in the last run");
    }
    cases.retain(|case| selection.selects(&case.to_string()));
    ensure!(!cases.is_empty(), "no end-to-end test is called like this: {}", selection.filters.join(" "));

    let report = report::Report::begin()?;
    let queue = queue::Queue::new(cases, &report::durations());
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..width(venue)?).map(|_| scope.spawn(|| worker::run(&program, &queue, &report))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    report.end()
}

impl Selection {
    fn selects(&self, case: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| case.contains(filter.as_str()))
    }
}

/// As many labs as there are CPUs and room for in memory; one test at a time on this machine, since tests count what is
/// left behind on it.
fn width(venue: Venue) -> Result<usize> {
    if venue == Venue::Machine {
        return Ok(1);
    }
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib =
        available.and_then(|line| line.trim().strip_suffix(" kB")).context("/proc/meminfo: MemAvailable")?;
    let labs = kib.parse::<usize>()? / 1024 / usize::try_from(LAB_MEMORY_MIB)?;
    Ok(cpus.min(labs).max(1))
}

/// Builds the test program and returns where it is.
fn program() -> Result<PathBuf> {
    let mut build = vec!["test", "--package", check::END_TO_END, "--test", "e2e", "--no-run"];
    build.extend(build::TESTED_PROFILE);
    step::run("building the end-to-end tests", workspace::cargo().args(&build))?;
    // Builds nothing any more and says where the program is.
    let messages = step::output(workspace::cargo().args(&build).arg("--message-format=json"))?;
    executable(&messages)?.context("cargo built no test program")
}

/// The executable of the integration tests among cargo's messages.
fn executable(messages: &str) -> Result<Option<PathBuf>> {
    for message in messages.lines() {
        let message: Value =
            serde_json::from_str(message).with_context(|| format!("cargo says: {message}"))?;
        let is_test =
            message["target"]["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
        if let Some(program) = message["executable"].as_str().filter(|_| is_test) {
            return Ok(Some(program.into()));
        }
    }
    Ok(None)
}

/// The names of all tests of a program.
fn tests(program: &Path) -> Result<Vec<String>> {
    let listing = step::output(Command::new(program).arg("--list"))?;
    Ok(listing.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// The machine a lab of `kind` is.
fn machine(kind: plan::Kind) -> Machine {
    let mut machine = Machine { cpus: 1, memory_mib: LAB_MEMORY_MIB, ..Machine::default() };
    match kind {
        plan::Kind::Here | plan::Kind::Lab => {}
        plan::Kind::TwoCpus => machine.cpus = 2,
        plan::Kind::Vfio => machine.vfio = true,
        plan::Kind::Iommufd => (machine.vfio, machine.iommufd) = (true, true),
    }
    machine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_integration_tests_are_run() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"]},"executable":"/t/lib-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":"/t/run-2"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executable(messages).unwrap(), Some(PathBuf::from("/t/run-2")));
    }

    #[test]
    fn a_filter_is_any_part_of_a_name() {
        let selection = |filters: &[&str]| Selection {
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            failed: false,
        };
        assert!(selection(&[]).selects("run::anything"));
        assert!(selection(&["exec::", "run::"]).selects("run::anything"));
        assert!(!selection(&["exec::"]).selects("run::anything"));
    }
}
