//! Modules of end-to-end tests, each in labs of its own, as many side by side as this machine has CPUs.
//!
//! Each lab has one CPU: an emulated machine with several is emulated by as many threads, hardly faster for what the
//! tests do, and its CPUs have been seen to lose each other's interrupts. A module runs in a process of its own, whose
//! output is shown when it has ended, so that it reads as if it had run alone.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::step;
use crate::test::{self, Part};

/// Runs `parts` of a test program; returns those that failed.
pub(crate) fn run(program: &Path, parts: Vec<Part>) -> Result<Vec<String>> {
    let width = width()?;
    let waiting = Mutex::new(parts.into_iter());
    let (failed, shown) = (Mutex::new(Vec::new()), Mutex::new(()));
    thread::scope(|scope| {
        let follow = || -> Result<()> {
            while let Some(part) = { waiting.lock().expect("no thread panics").next() } {
                let (passed, output) = one(program, &part)?;
                let _guard = shown.lock().expect("no thread panics");
                step::say(&format!("end-to-end: {part}"));
                io::stderr().write_all(&output)?;
                if !passed {
                    failed.lock().expect("no thread panics").push(part.to_string());
                }
            }
            Ok(())
        };
        let followers: Vec<_> = (0..width).map(|_| scope.spawn(follow)).collect();
        followers.into_iter().try_for_each(|follower| follower.join().expect("no thread panics"))
    })?;
    Ok(failed.into_inner().expect("no thread panics"))
}

/// As many labs as there are CPUs and room for in memory.
fn width() -> Result<usize> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib =
        available.and_then(|line| line.trim().strip_suffix(" kB")).context("/proc/meminfo: MemAvailable")?;
    let labs = kib.parse::<usize>()? / 1024 / usize::try_from(test::LAB_MEMORY_MIB)?;
    Ok(cpus.min(labs).max(1))
}

/// Runs a module in another process; whether it passed, and all it said.
fn one(program: &Path, part: &Part) -> Result<(bool, Vec<u8>)> {
    let (mut reader, writer) = io::pipe()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("test-module").arg(program).arg(&part.module);
    if part.iommufd {
        command.arg("--iommufd");
    }
    command.stdin(std::process::Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("the process of a module")?;
    // It holds the pipe's write ends; with them gone here, its end is the end of the output.
    drop(command);
    let mut output = Vec::new();
    reader.read_to_end(&mut output)?;
    Ok((child.wait()?.success(), output))
}

/// The other process: one module in the lab. It ends with the process that started it.
pub(crate) fn module(program: &Path, part: &Part) -> Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let libtest = [format!("{}::", part.module), "--test-threads=1".into()];
    let passed = test::in_the_lab(program, &libtest, part.iommufd)?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
