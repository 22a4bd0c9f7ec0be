//! `cargo xtask test --fuzz`: each target of `tests/fuzz` for a while, with the address sanitizer.
//!
//! The sanitizer and the coverage it needs are the compiler's, but not promised by a stable one; RUSTC_BOOTSTRAP
//! has it take the flags all the same. What a run finds interesting stays in the cache and is where the next
//! one begins. An input that fails is copied to `tests/fuzz/corpus/TARGET`, where the unit tests run it for ever.

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
    /// The inputs that failed, as files of the repository.
    kept: Vec<PathBuf>,
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
    // cargo-fuzz knows no --locked: cargo looks at the lock file first.
    let mut locked = workspace::cargo();
    step::run("fetching what fuzzing needs", locked.args(["fetch", "--manifest-path"]).arg(manifest()))?;
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

/// Lints the targets with the stable compiler, as any other code. Neither libFuzzer nor the sanitizer is built.
pub(crate) fn lint() -> Result<()> {
    let manifest = manifest();
    let mut command = workspace::tool();
    command.args(["clippy", "--locked", "--manifest-path"]).arg(&manifest);
    command.arg("--target-dir").arg(workspace::target()).args(["--", "-D", "warnings"]);
    // Where a libFuzzer would be linked from. Nothing is linked here; what is named only has to stay as it is.
    command.env("CUSTOM_LIBFUZZER_PATH", &manifest);
    step::run("clippy for the fuzz targets", &mut command)
}

fn manifest() -> PathBuf {
    workspace::path(FOLDER).join("Cargo.toml")
}

/// `cargo fuzz`, installed once.
fn tool() -> Result<PathBuf> {
    let inputs = cache::Inputs::new(1).text("version", CARGO_FUZZ);
    let folder = cache::artifact("cargo-fuzz", &inputs, |folder| {
        let mut install = workspace::cargo();
        install.args(["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--root"]).arg(folder);
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
    // What failed in an earlier run is in the committed corpus, or was not worth keeping.
    cache::remove_tree(&failures)?;
    for folder in [&corpus, &failures] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let log_path = folder.join("log");
    let log = File::create(&log_path).with_context(|| log_path.display().to_string())?;
    let mut command = Command::new(programs.join(&target));
    command.arg(&corpus);
    let corpus = workspace::path(FOLDER).join("corpus").join(&target);
    if corpus.is_dir() {
        command.arg(&corpus);
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
    let executions = statistic(&text, "number_of_executed_units");
    // A target that ran nothing has found nothing.
    let passed = status.success() && executions.parse().is_ok_and(|executions: u64| executions > 0);
    Ok(Outcome {
        executions,
        memory: statistic(&text, "peak_rss_mb"),
        failed: (!passed).then_some(log_path),
        kept: keep(&failures, &target, &corpus)?,
        target,
    })
}

/// Whether libFuzzer wrote this file because of a failure; slow inputs it writes down too.
fn fails(artifact: &Path) -> bool {
    let name = artifact.file_name().unwrap_or_default().to_string_lossy();
    ["crash-", "timeout-", "oom-"].iter().any(|kind| name.starts_with(kind))
}

/// Copies the inputs that failed into the committed corpus of their target. What they are called says how they
/// failed, in which target, and by libFuzzer's hash which input it is.
fn keep(failures: &Path, target: &str, corpus: &Path) -> Result<Vec<PathBuf>> {
    let mut kept = Vec::new();
    for artifact in fs::read_dir(failures).with_context(|| failures.display().to_string())? {
        let artifact = artifact?.path();
        if !fails(&artifact) {
            continue;
        }
        let name = artifact.file_name().unwrap_or_default().to_string_lossy();
        let (kind, hash) = name.split_once('-').unwrap_or(("crash", &name));
        let copy = corpus.join(format!("{kind}-{target}-{}", hash.get(..8).unwrap_or(hash)));
        fs::create_dir_all(corpus)?;
        fs::copy(&artifact, &copy).with_context(|| copy.display().to_string())?;
        kept.push(copy);
    }
    kept.sort();
    Ok(kept)
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
            step::say(&format!("{} failed: the end of {} says how", outcome.target, log.display()));
            for input in &outcome.kept {
                step::say(&format!(
                    "the input is kept as {}: commit it with the correction, unit tests run it from now on",
                    input.display()
                ));
            }
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

    #[test]
    fn an_input_that_fails_becomes_an_entry_of_the_corpus_and_a_slow_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (failures, corpus) = (folder.path().join("failures"), folder.path().join("corpus/net"));
        fs::create_dir(&failures).unwrap();
        for name in ["crash-0123456789abcdef", "slow-unit-0123456789", "timeout-ab"] {
            fs::write(failures.join(name), name).unwrap();
        }
        let kept = keep(&failures, "net", &corpus).unwrap();
        assert_eq!(kept, [corpus.join("crash-net-01234567"), corpus.join("timeout-net-ab")]);
        assert_eq!(fs::read_to_string(&kept[0]).unwrap(), "crash-0123456789abcdef");
        assert_eq!(keep(&failures, "net", &corpus).unwrap(), kept);
    }
}
