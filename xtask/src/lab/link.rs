//! A lab that is up: takes standard input, tells output as it comes, and how it ended.
//!
//! Only two sources say that a lab failed: its start-up protocol (frames of `kiai_lab`) and its own kernel's console.
//! What a command in the lab prints is never looked at.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kiai_lab::{Job, Kind, read_frame, write_frame};

use super::Machine;
use super::machine::Running;
use super::monitor;
use crate::step;

/// How much of the console's end is shown when the lab did not end as it should.
const TAIL_BYTES: u64 = 12 << 10;

/// What the lab's own kernel says when it cannot go on (kernel/panic.c, kernel/watchdog.c). The lab's command line makes
/// a panic of each that matters, and a panic ends QEMU.
const KERNEL_DIED: [&str; 3] =
    ["Kernel panic - not syncing", "watchdog: BUG: soft lockup", "rcu: INFO: rcu_"];

/// What QEMU always says of a CPU model under emulation.
const EXPECTED_COMPLAINT: &str = "warning: TCG doesn't support requested feature";

/// How long a lab may take until it is ready for its command: seconds if the host is idle.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// How long the kernel of a silent lab may take to say what it was doing.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// An event of a lab.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LabEvent {
    /// Bytes of the command's standard output.
    Stdout(Vec<u8>),
    /// Bytes of the command's standard error.
    Stderr(Vec<u8>),
    /// The command has ended; its exit status as a shell counts it.
    Exit(i32),
    /// Nothing came within the time that was given.
    Nothing,
    /// The lab is gone, or says that it failed.
    Gone(Gone),
}

/// How a lab went that did not end as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone {
    /// The lab itself says that it failed: by its start-up protocol or on its kernel's console. Otherwise whatever ran
    /// in it is the first suspect.
    pub(crate) lab_failed: bool,
    pub(crate) reason: String,
    /// The end of the lab kernel's console and of QEMU's complaints.
    pub(crate) console: String,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "lab: {}", self.reason)?;
        self.console.lines().try_for_each(|line| writeln!(f, "  | {line}"))
    }
}

/// A lab whose command is running. Dropping it stops the machine.
pub(crate) struct Session {
    running: Running,
}

impl Session {
    /// Hands over `job` and waits until the lab is about to run it.
    pub(super) fn begin(mut running: Running, job: &Job, machine: &Machine) -> Result<Result<Self, Gone>> {
        if let Err(error) = write_frame(&mut running.port, Kind::Job, &job.encode()) {
            return Ok(Err(gone(&mut running, true, &format!("it does not take its job: {error}"))));
        }
        let limit = BOOT_LIMIT.min(machine.timeout).max(Duration::from_millis(1));
        running.port.set_read_timeout(Some(limit))?;
        let reason = match read_frame(&mut running.port) {
            Ok((Kind::Started, _)) => {
                if machine.verbose {
                    step::say(&format!("lab: up after {:.1} s", running.started.elapsed().as_secs_f32()));
                }
                return Ok(Ok(Self { running }));
            }
            Ok((Kind::Failed, payload)) => String::from_utf8_lossy(&payload).into_owned(),
            Ok(_) => bail!("the first frame of the lab does not say that it is up"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                format!("it is not up after {} s", limit.as_secs())
            }
            Err(_) => "it stopped before it was up".to_owned(),
        };
        Ok(Err(gone(&mut running, true, &reason)))
    }

    /// What to write standard input to, from any thread. Its drop closes nothing: [`Input::close`] does.
    pub(crate) fn input(&self) -> Result<Input> {
        Ok(Input(self.running.port.try_clone().context("the lab's port")?))
    }

    /// Waits for the next word until `deadline`. After `Exit` and `Gone` the machine is stopped.
    pub(crate) fn next(&mut self, deadline: Instant) -> Result<LabEvent> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.running.port.set_read_timeout(Some(left))?;
        let (kind, payload) = match read_frame(&mut self.running.port) {
            Ok(frame) => frame,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(LabEvent::Nothing),
            Err(_) => return Ok(LabEvent::Gone(self.died())),
        };
        Ok(match kind {
            Kind::Stdout => LabEvent::Stdout(payload),
            Kind::Stderr => LabEvent::Stderr(payload),
            Kind::Exit => {
                self.running.stop();
                LabEvent::Exit(String::from_utf8_lossy(&payload).parse()?)
            }
            Kind::Failed => LabEvent::Gone(gone(&mut self.running, true, &String::from_utf8_lossy(&payload))),
            Kind::Started | Kind::Job | Kind::Stdin => bail!("the lab sent a frame that has no place here"),
        })
    }

    /// The console so far.
    pub(crate) fn console(&mut self) -> String {
        tail(&mut self.running.console, u64::MAX)
    }

    /// Since when the machine is there.
    pub(crate) fn started(&self) -> Instant {
        self.running.started
    }

    /// Stops a machine that says nothing, after it was asked where it is: by QEMU's monitor, whose answers come first,
    /// and by an interrupt that it cannot mask, to which its kernel answers on the console and ends.
    pub(crate) fn stop_silent(&mut self, reason: &str) -> (String, Gone) {
        let said = monitor::interrogate(&self.running.monitor);
        let deadline = Instant::now() + ANSWER_LIMIT;
        while matches!(self.next(deadline), Ok(LabEvent::Stdout(_) | LabEvent::Stderr(_)))
            && Instant::now() < deadline
        {}
        (said, gone(&mut self.running, false, reason))
    }

    /// Stops the machine; the end of its console.
    pub(crate) fn stop(&mut self, reason: &str) -> Gone {
        gone(&mut self.running, false, reason)
    }

    /// The port was closed before the command's end: QEMU has ended.
    fn died(&mut self) -> Gone {
        let mut gone = gone(&mut self.running, false, "it stopped before the command's end");
        gone.lab_failed = kernel_died(&gone.console);
        gone
    }
}

/// Standard input of the lab's command.
pub(crate) struct Input(std::os::unix::net::UnixStream);

impl Input {
    /// Sends bytes. An error says that the lab is gone.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // An empty frame is the end of file.
        if bytes.is_empty() { Ok(()) } else { write_frame(&mut self.0, Kind::Stdin, bytes) }
    }

    /// The end of file.
    pub(crate) fn close(mut self) {
        // If the lab is gone, so is the need to tell it.
        let _ = write_frame(&mut self.0, Kind::Stdin, b"");
    }
}

/// Whether a console's text says that the kernel it belongs to could not go on.
fn kernel_died(console: &str) -> bool {
    KERNEL_DIED.iter().any(|word| console.contains(word))
}

/// Stops the machine and says how it went, with the console's last lines.
fn gone(running: &mut Running, lab_failed: bool, reason: &str) -> Gone {
    running.stop();
    let complaints = tail(&mut running.complaints, TAIL_BYTES);
    let complaints = complaints.lines().filter(|line| !line.contains(EXPECTED_COMPLAINT));
    let complaints: String = complaints.map(|line| format!("QEMU: {line}\n")).collect();
    let console = complaints + &tail(&mut running.console, TAIL_BYTES);
    Gone { lab_failed, reason: reason.to_owned(), console }
}

fn tail(file: &mut File, bytes: u64) -> String {
    let mut text = Vec::new();
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let read =
        file.seek(SeekFrom::Start(length.saturating_sub(bytes))).and_then(|_| file.read_to_end(&mut text));
    match read {
        Ok(_) => String::from_utf8_lossy(&text).replace('\r', ""),
        Err(error) => format!("(not readable: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_labs_own_kernel_says_that_it_died() {
        assert!(kernel_died("[  9.1] Kernel panic - not syncing: softlockup: hung tasks"));
        assert!(kernel_died("[  9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [vcpu0:77]"));
        for product in
            ["no answer within 60 s", "the microVM ended: (triple fault)", "did not end within 300s"]
        {
            assert!(!kernel_died(product), "{product}");
        }
    }
}
