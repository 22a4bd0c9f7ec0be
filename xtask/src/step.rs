//! Shows what is being done: one line per step, a log file behind each, its tail when the step fails.
//!
//! On a terminal a running step shows its last line of output; elsewhere it prints one line every half minute. Steps
//! that take no time are not mentioned.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cache;

const TAIL_LINES: usize = 40;
const HEARTBEAT: Duration = Duration::from_secs(30);
const WORTH_MENTIONING: Duration = Duration::from_secs(1);

/// Says one line on standard error.
pub(crate) fn say(what: &str) {
    eprintln!("xtask: {what}");
}

/// Runs `command` as the step called `what`: its output goes to a log, and on failure the log's end is shown.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    let log_path = cache::root().join("logs").join(format!("{}-{}.log", slug(what), std::process::id()));
    fs::create_dir_all(cache::root().join("logs"))?;
    let mut log = File::create(&log_path).with_context(|| log_path.display().to_string())?;
    writeln!(log, "{command:?}")?;

    let bar = spinner(what);
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| program(command))?;
    // The command holds the pipe's write ends; with them gone here, the child's end is the end of the output.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let mut last_sign = None;
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(log, "{line}")?;
        bar.set_message(line.trim().to_owned());
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line.clone());
        if bar.is_hidden() && started.elapsed() > WORTH_MENTIONING {
            match last_sign {
                None => say(&format!("{what} …")),
                Some(since) if Instant::now() - since < HEARTBEAT => continue,
                Some(_) => {
                    say(&format!("{what}: {:.0} s so far: {}", started.elapsed().as_secs_f32(), line.trim()));
                }
            }
            last_sign = Some(Instant::now());
        }
    }
    let status = child.wait()?;
    bar.finish_and_clear();
    if !status.success() {
        for line in &tail {
            eprintln!("  | {line}");
        }
        bail!("{what}: {} ended with {status}; whole output: {}", program(command), log_path.display());
    }
    if started.elapsed() > WORTH_MENTIONING {
        say(&format!("{what}: done in {:.1} s", started.elapsed().as_secs_f32()));
    }
    fs::remove_file(&log_path).context("removing the log of a step that went well")
}

/// Runs a short `command` and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| program(command))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` with this process's own standard streams, as what the user asked to see.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| program(command))?;
    if !status.success() {
        bail!("{} ended with {status}", program(command));
    }
    Ok(())
}

fn spinner(what: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}") {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn slug(what: &str) -> String {
    what.chars().map(|character| if character.is_ascii_alphanumeric() { character } else { '-' }).collect()
}
