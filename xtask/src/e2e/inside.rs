//! Where the tests run: reads orders from standard input, runs each test in a process of its own, writes events to
//! standard output.

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::event::{Ended, Event, Order, Outcome};

/// How long a test may take. Its own watch ends it before that, with evidence (`kiai_tests::evidence`).
pub(super) const LIMIT: Duration = Duration::from_secs(11 * 60);
/// How much of a file of evidence is passed on.
const MOST_EVIDENCE: usize = 256 << 10;

/// Runs the tests that are ordered, one at a time, until there are no more orders.
pub(crate) fn serve(program: &Path) -> Result<()> {
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?).context("an order")?;
        let evidence = tempfile::tempdir().context("a folder for evidence")?;
        let started = Instant::now();
        let outcome = one(program, &order, evidence.path())?;
        if matches!(outcome, Outcome::Failed(_)) {
            files(evidence.path())?.into_iter().try_for_each(|event| say(&event))?;
        }
        say(&Event::Ended(Ended { outcome, seconds: started.elapsed().as_secs_f64() }))?;
    }
    Ok(())
}

fn say(event: &Event) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(event)?)?;
    stdout.flush().context("standard output")
}

/// Runs one test to its end. What it prints becomes a file of evidence.
fn one(program: &Path, order: &Order, evidence: &Path) -> Result<Outcome> {
    let (output, skips) = (evidence.join("output.txt"), evidence.join("skips.jsonl"));
    let file = File::create(&output)?;
    let mut command = Command::new(program);
    command.args([&order.test, "--exact", "--test-threads=1"]);
    command.env("KIAI_EVIDENCE", evidence).env("KIAI_SKIPS", &skips);
    command.env("KIAI_TEST_VCPUS", order.vcpus.to_string());
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let child = command.spawn().with_context(|| program.display().to_string())?;
    let status = wait(child)?;
    let skips = fs::read_to_string(&skips).unwrap_or_default();
    Ok(outcome(status, &String::from_utf8_lossy(&fs::read(&output)?), &skips))
}

/// Waits for the end; none if it does not come within the limit and the process was killed.
fn wait(mut child: Child) -> Result<Option<ExitStatus>> {
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context("watching a test")?;
    let limit = Timespec { tv_sec: i64::try_from(LIMIT.as_secs())?, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))?;
    if ended == 0 {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok((ended > 0).then_some(status))
}

/// What the end of a test's process, its output and its list of skips say.
fn outcome(status: Option<ExitStatus>, output: &str, skips: &str) -> Outcome {
    let Some(status) = status else {
        return Outcome::Failed(format!("no end within {} s", LIMIT.as_secs()));
    };
    if !status.success() {
        return Outcome::Failed(first_panic(output).unwrap_or_else(|| format!("its process: {status}")));
    }
    // A name that no test has would run none and succeed.
    if !output.contains("test result: ok. 1 passed") {
        return Outcome::Failed("it did not run".into());
    }
    match skips.lines().next() {
        None => Outcome::Passed,
        Some(line) => {
            let skip: Result<serde_json::Value, _> = serde_json::from_str(line);
            let reason = skip.ok().and_then(|skip| Some(skip["reason"].as_str()?.to_owned()));
            Outcome::Skipped(reason.unwrap_or_else(|| line.to_owned()))
        }
    }
}

/// The message of the first panic in a test's output, on one line.
fn first_panic(output: &str) -> Option<String> {
    let mut lines = output.lines().skip_while(|line| !line.contains("panicked at"));
    lines.next()?;
    let message: Vec<_> = lines.take_while(|line| !line.starts_with("note: ")).take(4).collect();
    Some(message.join(" / "))
}

/// Everything in the folder of evidence, each file's end if it is long.
fn files(folder: &Path) -> Result<Vec<Event>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let bytes = fs::read(entry.path()).with_context(|| entry.path().display().to_string())?;
        let end = &bytes[bytes.len().saturating_sub(MOST_EVIDENCE)..];
        files.push(Event::File {
            name: entry.file_name().to_string_lossy().into_owned(),
            text: String::from_utf8_lossy(end).into_owned(),
        });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const PASSED: &str = "test run::x ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored";

    fn exited(code: i32) -> Option<ExitStatus> {
        Some(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn what_a_test_says_of_itself_is_its_outcome() {
        assert_eq!(outcome(exited(0), PASSED, ""), Outcome::Passed);
        let skip = "{\"test\":\"run::x\",\"reason\":\"no tun\"}\n";
        assert_eq!(outcome(exited(0), PASSED, skip), Outcome::Skipped("no tun".into()));
        let panicked = "thread 'run::x' panicked at tests/e2e/run.rs:9:1:\nno answer within 60 s\nnote: run";
        assert_eq!(outcome(exited(101), panicked, ""), Outcome::Failed("no answer within 60 s".into()));
    }

    #[test]
    fn nothing_passes_by_not_running() {
        let none = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored";
        assert!(matches!(outcome(exited(0), none, ""), Outcome::Failed(_)));
        assert!(matches!(outcome(None, PASSED, ""), Outcome::Failed(_)));
        assert!(matches!(outcome(Some(ExitStatus::from_raw(9)), PASSED, ""), Outcome::Failed(_)));
    }
}
