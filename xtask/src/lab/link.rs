//! Follows a running lab to its end: hands it the job, passes standard streams through, watches the clock.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kiai_lab::{Job, Kind, read_frame, write_frame};

use super::Machine;
use super::machine::Running;
use crate::step;

/// The exit code when the time ran out, as `timeout` has it.
pub(crate) const TIMED_OUT: u8 = 124;
/// The exit code when the lab failed rather than the command in it.
pub(crate) const LAB_FAILED: u8 = 125;
/// How much of the console's end is shown when the lab did not end as it should.
const TAIL_BYTES: u64 = 6 << 10;

/// What a kernel says when the emulated CPU lost the way back from an interrupt, what kiai says when it lost more than
/// that or spins, and what the tests' harness says of a command that never ends. QEMU's SVM has been seen to do that to
/// the lab's kernel and to a guest's, running the same code that runs well every other time.
const CPU_FAULTS: [&str; 5] = [
    "fixup_bad_iret",
    "stack guard page was hit",
    "(triple fault)",
    "no answer within",
    "did not end within",
];

/// What QEMU always says of a CPU model under emulation.
const EXPECTED_COMPLAINT: &str = "warning: TCG doesn't support requested feature";

/// How long a lab may take until it is ready for its command: seconds if the host is idle. An emulated machine whose
/// host was busy at the wrong moment has been seen to wait for ever before its kernel said a word.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// Hands over `job` and waits until the lab is about to run it. False, and a word about why, if it does not come up;
/// the machine is stopped then.
pub(crate) fn hand_over(running: &mut Running, job: &Job, machine: &Machine) -> Result<bool> {
    if let Err(error) = write_frame(&mut running.port, Kind::Job, &job.encode()) {
        failed(running, &format!("it does not take its job: {error}"));
        return Ok(false);
    }
    let limit = BOOT_LIMIT.min(machine.timeout).max(Duration::from_millis(1));
    running.port.set_read_timeout(Some(limit))?;
    match read_frame(&mut running.port) {
        Ok((Kind::Started, _)) => {
            if machine.verbose {
                step::say(&format!("lab: up after {:.1} s", running.started.elapsed().as_secs_f32()));
            }
            return Ok(true);
        }
        Ok((Kind::Failed, payload)) => failed(running, &String::from_utf8_lossy(&payload)),
        Ok(_) => bail!("the first frame of the lab does not say that it is up"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            failed(running, &format!("it is not up after {} s", limit.as_secs()))
        }
        Err(_) => failed(running, "it stopped before it was up"),
    };
    Ok(false)
}

/// Follows a command that was started to its end and returns its exit code. The machine is stopped when this returns.
pub(crate) fn follow(mut running: Running, machine: &Machine) -> Result<ExitCode> {
    let started = Instant::now();
    let to_lab = running.port.try_clone()?;
    thread::spawn(move || feed(to_lab));

    let mut cpu_fault = false;
    let code = loop {
        let left = machine.timeout.saturating_sub(started.elapsed());
        running.port.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let (kind, payload) = match read_frame(&mut running.port) {
            Ok(frame) => frame,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                failed(&mut running, &format!("no end after {} s", machine.timeout.as_secs()));
                return Ok(ExitCode::from(TIMED_OUT));
            }
            Err(_) => return Ok(failed(&mut running, "it stopped before the command's end")),
        };
        if machine.mind_cpu_faults && matches!(kind, Kind::Stdout | Kind::Stderr) {
            let text = String::from_utf8_lossy(&payload);
            cpu_fault |= CPU_FAULTS.iter().any(|fault| text.contains(fault));
        }
        match kind {
            Kind::Stdout => pass_on(&mut io::stdout(), &payload)?,
            Kind::Stderr => pass_on(&mut io::stderr(), &payload)?,
            Kind::Exit => break String::from_utf8_lossy(&payload).parse::<i32>()?,
            Kind::Failed => {
                return Ok(failed(&mut running, &String::from_utf8_lossy(&payload)));
            }
            Kind::Started | Kind::Job | Kind::Stdin => bail!("the lab sent a frame that has no place here"),
        }
    };
    if cpu_fault && code != 0 {
        return Ok(failed(
            &mut running,
            "its emulated CPU lost the way back from an interrupt, or a command hung",
        ));
    }
    running.stop();
    if machine.verbose {
        eprint!("{}", tail(&mut running.console, u64::MAX));
        step::say(&format!("lab: stopped after {:.1} s", running.started.elapsed().as_secs_f32()));
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Standard input, if it is not a terminal: a lab command is no interactive session.
fn feed(mut port: UnixStream) {
    let mut stdin = io::stdin();
    let mut buffer = vec![0; 64 << 10];
    while !stdin.is_terminal() {
        match stdin.read(&mut buffer) {
            Ok(length @ 1..) if write_frame(&mut port, Kind::Stdin, &buffer[..length]).is_ok() => {}
            _ => break,
        }
    }
    // If the lab is gone, so is the need to tell it.
    let _ = write_frame(&mut port, Kind::Stdin, b"");
}

fn pass_on(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// Stops the machine and says why, with the console's last lines.
fn failed(running: &mut Running, why: &str) -> ExitCode {
    running.stop();
    step::say(&format!("lab: {why}"));
    for (what, file) in
        [("QEMU says", &mut running.complaints), ("the console's last lines", &mut running.console)]
    {
        let text = tail(file, TAIL_BYTES);
        let mut lines = text.lines().filter(|line| !line.contains(EXPECTED_COMPLAINT)).peekable();
        if lines.peek().is_some() {
            eprintln!("xtask: lab: {what}:");
            lines.for_each(|line| eprintln!("  | {line}"));
        }
    }
    ExitCode::from(LAB_FAILED)
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
