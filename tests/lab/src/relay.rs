//! Runs the command and carries its standard streams over the port until it has ended and its output is out.
//!
//! The command gets pipes, as from any shell. Its output is drained until the command is gone and the pipe is empty:
//! a daemon it left behind that still holds the pipe does not keep the lab alive.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;

use kiai_lab::{Job, Kind, read_frame, write_frame};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, WaitOptions, waitpid};

/// Runs `job`'s command and returns its exit status as a shell counts it: 128 and the signal's number if killed.
pub(crate) fn run(job: &Job, port: &File) -> io::Result<i32> {
    let (program, arguments) =
        job.argv.split_first().ok_or_else(|| io::Error::other("there is no command to run"))?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&job.cwd).env_clear();
    command.envs(job.env.iter().filter_map(|variable| variable.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());

    let output = Mutex::new(port.try_clone()?);
    send(&output, Kind::Started, b"")?;
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            send(&output, Kind::Stderr, format!("lab: {program}: {error}\n").as_bytes())?;
            return Ok(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let pid = Pid::from_child(&child);
    let ended = eventfd(0, EventfdFlags::CLOEXEC)?;

    // Not part of the scope below: it ends with the machine, when the host has nothing more to say.
    let input = port.try_clone()?;
    thread::spawn(move || feed(input, stdin));

    thread::scope(|scope| {
        let (output, ended) = (&output, &ended);
        let relays = [
            scope.spawn(move || drain(stdout.map(OwnedFd::from), Kind::Stdout, output, ended)),
            scope.spawn(move || drain(stderr.map(OwnedFd::from), Kind::Stderr, output, ended)),
        ];
        let status = reap_until(pid)?;
        rustix::io::write(ended, &1_u64.to_ne_bytes())?;
        for relay in relays {
            relay.join().map_err(|_| io::Error::other("a relay thread panicked"))??;
        }
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    })
}

/// The first process inherits every orphan: collects all of them until `pid` is the one that ended.
fn reap_until(pid: Pid) -> io::Result<ExitStatus> {
    loop {
        match waitpid(None, WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == pid => return Ok(ExitStatus::from_raw(status.as_raw())),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Host to command. A command that closed its standard input, or never reads it, loses nothing but the bytes.
fn feed(mut port: File, mut stdin: Option<ChildStdin>) {
    while let Ok((kind, bytes)) = read_frame(&mut port) {
        if kind != Kind::Stdin {
            continue;
        }
        let open = stdin.as_mut().is_some_and(|pipe| !bytes.is_empty() && pipe.write_all(&bytes).is_ok());
        if !open {
            stdin = None;
        }
    }
}

/// Command to host, until end of file, or until `ended` is signalled and nothing is left in the pipe.
fn drain(pipe: Option<OwnedFd>, kind: Kind, port: &Mutex<File>, ended: &OwnedFd) -> io::Result<()> {
    let Some(pipe) = pipe else { return Ok(()) };
    fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
    let mut pipe = File::from(pipe);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut sources =
            [PollFd::new(&pipe, PollFlags::IN), PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
        match poll(&mut sources, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let gone = !sources[1].revents().is_empty();
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => send(port, kind, &buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && gone => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn send(port: &Mutex<File>, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let mut port = port.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    write_frame(&mut *port, kind, payload)
}
