//! One worker: takes tests from the queue and runs them in one lab, or on this machine, as long as that stays clean.
//!
//! A lab is used for the next test only if the last one passed: a test that failed may have left anything behind.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::event::{Event, Order, Outcome};
use super::plan::Kind;
use super::queue::Queue;
use super::report::Report;
use super::verdict::{End, Verdict, judge};
use super::{inside, machine};
use crate::lab::{Gone, Input, Lab, LabEvent, Session};
use crate::{cache, image, store, test};

/// How much later than the test's own limit the lab is given up.
const GRACE: Duration = Duration::from_secs(90);

/// Runs tests until the queue is empty.
pub(crate) fn run(program: &Path, queue: &Queue, report: &Report) -> Result<()> {
    let mut ready: Option<Host> = None;
    while let Some(waiting) = queue.take(ready.as_ref().map(|host| host.kind)) {
        let case = &waiting.case;
        let started = Instant::now();
        let mut files = Vec::new();
        let mut seconds = None;
        let usable = ready.take().filter(|host| host.kind == case.kind);
        let host = match usable {
            Some(host) => Ok(host),
            None => Host::start(case.kind, program)?,
        };
        let end = match host {
            Err(gone) => End::Lab(gone),
            Ok(mut host) => {
                let order = Order { test: case.test.clone(), vcpus: case.vcpus };
                let end = host.run(&order, &mut |event| match event {
                    Event::File { name, text } => files.push((name, text)),
                    Event::Ended(ended) => seconds = Some(ended.seconds),
                })?;
                if matches!(end, End::Outcome(Outcome::Passed | Outcome::Skipped(_))) {
                    ready = Some(host);
                } else if matches!(end, End::Outcome(_)) {
                    files.push(("lab-console.txt".to_owned(), host.console()));
                }
                end
            }
        };
        let seconds = seconds.unwrap_or_else(|| started.elapsed().as_secs_f64());
        if let End::Lab(gone) | End::Silence(gone) = &end {
            files.push(("lab-console.txt".to_owned(), gone.console.clone()));
        }
        match judge(&end, waiting.repeated) {
            Verdict::Final(outcome) => report.ended(case, outcome, seconds, &files)?,
            Verdict::Repeat(reason) => {
                report.repeated(case, &reason, seconds, &files)?;
                queue.repeat(waiting);
            }
        }
    }
    Ok(())
}

/// Where tests run: a lab, or a process on this machine.
struct Host {
    kind: Kind,
    channel: Channel,
    /// What has come of a line that is not whole yet.
    pending: Vec<u8>,
}

enum Channel {
    Lab(Box<Session>, Input),
    Here { child: Child, stdin: ChildStdin, lines: Receiver<Vec<u8>>, _folder: tempfile::TempDir },
}

impl Host {
    fn start(kind: Kind, program: &Path) -> Result<Result<Self, Gone>> {
        let channel = if kind == Kind::Here {
            here(program)?
        } else {
            let inside = "/usr/local/bin/e2e";
            let mut lab = Lab::new(["xtask", "test-here", inside].map(str::to_owned).to_vec());
            lab.put(&format!("{}:{inside}", program.display()))?;
            lab.place(std::env::current_exe()?, "bin/xtask");
            lab.put_project()?;
            lab.put_store()?;
            lab.put_containerd();
            match lab.start(&machine(kind))? {
                Err(gone) => return Ok(Err(gone)),
                Ok(session) => {
                    let input = session.input()?;
                    Channel::Lab(Box::new(session), input)
                }
            }
        };
        Ok(Ok(Self { kind, channel, pending: Vec::new() }))
    }

    /// Runs one test; `told` gets every event.
    fn run(&mut self, order: &Order, told: &mut dyn FnMut(Event)) -> Result<End> {
        let deadline = Instant::now() + inside::LIMIT + GRACE;
        let line = serde_json::to_string(order)? + "\n";
        // An error says that it is gone, and the next read says how.
        let _ = match &mut self.channel {
            Channel::Lab(_, input) => input.send(line.as_bytes()),
            Channel::Here { stdin, .. } => stdin.write_all(line.as_bytes()),
        };
        loop {
            match self.line(deadline, told)? {
                Ok(line) => {
                    let event: Event = serde_json::from_slice(&line).with_context(|| {
                        format!("what runs the tests says {:?}", String::from_utf8_lossy(&line))
                    })?;
                    let outcome = match &event {
                        Event::Ended(ended) => Some(ended.outcome.clone()),
                        Event::File { .. } => None,
                    };
                    told(event);
                    if let Some(outcome) = outcome {
                        return Ok(End::Outcome(outcome));
                    }
                }
                Err(end) => return Ok(end),
            }
        }
    }

    /// The next whole line of standard output. Standard error is passed on: nothing is expected there.
    fn line(&mut self, deadline: Instant, told: &mut dyn FnMut(Event)) -> Result<Result<Vec<u8>, End>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Ok(Ok(line));
            }
            let end = match &mut self.channel {
                Channel::Lab(session, _) => match session.next(deadline)? {
                    LabEvent::Stdout(bytes) => {
                        self.pending.extend(bytes);
                        continue;
                    }
                    LabEvent::Stderr(bytes) => {
                        std::io::stderr().write_all(&bytes)?;
                        continue;
                    }
                    LabEvent::Gone(gone) => End::Lab(gone),
                    LabEvent::Exit(status) => {
                        End::Silence(session.stop(&format!("what runs the tests ended with {status}")))
                    }
                    LabEvent::Nothing => {
                        let (said, gone) =
                            session.stop_silent("no word within the limit; the lab is given up");
                        told(Event::File { name: "lab-processors.txt".to_owned(), text: said });
                        End::Silence(gone)
                    }
                },
                Channel::Here { child, lines, .. } => {
                    let reason = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))
                    {
                        Ok(bytes) => {
                            self.pending.extend(bytes);
                            continue;
                        }
                        Err(RecvTimeoutError::Timeout) => "no word within the limit",
                        Err(RecvTimeoutError::Disconnected) => "what runs the tests has ended",
                    };
                    // Killing fails only if it has ended, which is what is wanted.
                    let _ = child.kill();
                    End::Silence(Gone {
                        lab_failed: false,
                        reason: reason.to_owned(),
                        console: String::new(),
                    })
                }
            };
            return Ok(Err(end));
        }
    }

    /// The console of the lab so far; nothing on this machine.
    fn console(&mut self) -> String {
        match &mut self.channel {
            Channel::Lab(session, _) => session.console(),
            Channel::Here { .. } => String::new(),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Channel::Here { child, .. } = &mut self.channel {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// This program again, as it runs in a lab, with the same environment.
fn here(program: &Path) -> Result<Channel> {
    let folder = cache::scratch()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("test-here").arg(program).stdin(Stdio::piped()).stdout(Stdio::piped());
    test::environment(&mut command, folder.path())?;
    let (root, images) = (folder.path().join("store"), image::artifact()?.folder());
    store::fill(&root, &images, &images.to_string_lossy())?;
    let mut child = command.env("KIAI_ROOT", &root).spawn().context("the process that runs the tests")?;
    let stdin = child.stdin.take().context("its standard input")?;
    let stdout = child.stdout.take().context("its standard output")?;
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let mut line = line;
            line.push(b'\n');
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    Ok(Channel::Here { child, stdin, lines, _folder: folder })
}
