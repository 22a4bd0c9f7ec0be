//! `cargo xtask test --fuzz`: each target of `tests/fuzz` for a while, with the address sanitizer.
//!
//! The sanitizer and the coverage it needs are the compiler's, but not promised by a stable one; RUSTC_BOOTSTRAP
//! has it take the flags all the same. What a run finds interesting stays in the cache and is where the next
//! one begins. What fails is a file: kept in `tests/fuzz/corpus/TARGET`, the unit tests run it for ever.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

use crate::{cache, step, workspace};

/// The version of `cargo fuzz` whose options these are.
const CARGO_FUZZ: &str = "0.13.2";
const FOLDER: &str = "tests/fuzz";
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// Longest input: what fits into it finds what longer ones would.
const LONGEST: usize = 4096;
/// One input that takes so many seconds hangs.
const HANGS: u32 = 30;
/// A target that grows to so many MiB leaks, or lets a guest make it grow.
const MOST_MEMORY: u32 = 3000;

/// What the run of a target came to.
struct Outcome {
    target: String,
    executions: String,
    memory: String,
    /// Where the output is, if it failed.
    failed: Option<PathBuf>,
}

/// Runs every target whose name contains one of `filters` (all, if there is none) for `seconds`.
pub(crate) fn run(seconds: u64, filters: &[String]) -> Result<ExitCode> {
    let tool = tool()?;
    let target_folder = workspace::target().join("fuzz");
    let fuzz = |verb: &str| {
        let mut command = Command::new(&tool);
        command.current_dir(workspace::root()).args(["fuzz", verb, "--fuzz-dir", FOLDER]);
        command
    };
    let mut build = fuzz("build");
    build.args(["--sanitizer", "address", "--target-dir"]).arg(&target_folder);
    step::run("building the fuzz targets", build.env("RUSTC_BOOTSTRAP", "1"))?;
    let wanted =
        |name: &&str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let listing = step::output(&mut fuzz("list"))?;
    let waiting: VecDeque<String> = listing.lines().filter(wanted).map(str::to_owned).collect();
    ensure!(!waiting.is_empty(), "no fuzz target is called like this: {}", filters.join(" "));
    let programs = target_folder.join(PLATFORM).join("release");
    let outcomes = all(waiting, &programs, seconds)?;
    report(&outcomes)
}

/// `cargo fuzz`, installed once.
fn tool() -> Result<PathBuf> {
    let inputs = cache::Inputs::new(1).text("version", CARGO_FUZZ);
    let folder = cache::artifact("cargo-fuzz", &inputs, |folder| {
        let mut install = workspace::cargo();
        install.args(["install", "--locked", "cargo-fuzz", "--version", CARGO_FUZZ, "--root"]).arg(folder);
        step::run("installing cargo-fuzz", &mut install)
    })?;
    Ok(folder.join("bin/cargo-fuzz"))
}

/// As many at a time as there are processors: each target is one thread's work, its devices' threads aside.
fn all(waiting: VecDeque<String>, programs: &Path, seconds: u64) -> Result<Vec<Outcome>> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let (waiting, outcomes) = (Mutex::new(waiting), Mutex::new(Vec::new()));
    let next = || waiting.lock().expect("no thread panics with it").pop_front();
    let work = || -> Result<()> {
        while let Some(target) = next() {
            step::say(&format!("fuzzing {target} for {seconds} s"));
            let outcome = one(target, programs, seconds)?;
            outcomes.lock().expect("no thread panics with it").push(outcome);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|worker| worker.join().expect("it returns its errors"))
    })?;
    let mut outcomes = outcomes.into_inner().expect("all threads are gone");
    outcomes.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(outcomes)
}

fn one(target: String, programs: &Path, seconds: u64) -> Result<Outcome> {
    let folder = cache::root().join("fuzz").join(&target);
    let (corpus, failures) = (folder.join("corpus"), folder.join("failures"));
    for folder in [&corpus, &failures] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let log_path = folder.join("log");
    let log = File::create(&log_path).with_context(|| log_path.display().to_string())?;
    let mut command = Command::new(programs.join(&target));
    command.arg(&corpus);
    let kept = workspace::path(FOLDER).join("corpus").join(&target);
    if kept.is_dir() {
        command.arg(kept);
    }
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-max_len={LONGEST}")).arg("-len_control=0");
    command.arg(format!("-timeout={HANGS}")).arg(format!("-rss_limit_mb={MOST_MEMORY}"));
    command.arg("-print_final_stats=1").arg(format!("-artifact_prefix={}/", failures.display()));
    // Leaks are found by growth: threads of the device may be in the middle of something when it looks.
    command.env("ASAN_OPTIONS", "detect_odr_violation=0:detect_leaks=0");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let status = command.status().with_context(|| target.clone())?;
    let text = String::from_utf8_lossy(&fs::read(&log_path)?).into_owned();
    Ok(Outcome {
        executions: statistic(&text, "number_of_executed_units"),
        memory: statistic(&text, "peak_rss_mb"),
        failed: (!status.success()).then_some(log_path),
        target,
    })
}

/// One of libFuzzer's final numbers; `-` where it did not come to print them.
fn statistic(log: &str, name: &str) -> String {
    let prefix = format!("stat::{name}:");
    let number = log.lines().find_map(|line| line.strip_prefix(prefix.as_str()));
    number.map_or("-", str::trim).to_owned()
}

fn report(outcomes: &[Outcome]) -> Result<ExitCode> {
    let mut table = format!("{:<20} {:>12} {:>9}\n", "target", "executions", "peak MiB");
    for Outcome { target, executions, memory, .. } in outcomes {
        table += &format!("{target:<20} {executions:>12} {memory:>9}\n");
    }
    print!("{table}");
    let kept = cache::root().join("fuzz/last-run");
    fs::write(&kept, table).with_context(|| kept.display().to_string())?;
    let mut code = ExitCode::SUCCESS;
    for outcome in outcomes {
        if let Some(log) = &outcome.failed {
            step::say(&format!(
                "{} failed: the end of {} says how; keep the input it names in {FOLDER}/corpus/{}",
                outcome.target,
                log.display(),
                outcome.target
            ));
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_libfuzzers_output() {
        let log = "#1 DONE\nstat::number_of_executed_units: 12591\nstat::peak_rss_mb:              386\n";
        assert_eq!(statistic(log, "number_of_executed_units"), "12591");
        assert_eq!(statistic(log, "peak_rss_mb"), "386");
        assert_eq!(statistic(log, "average_exec_per_sec"), "-");
    }
}
