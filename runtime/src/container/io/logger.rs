//! A logging program of the client's (`binary:///PROGRAM?NAME=VALUE`), by containerd's convention (`core/runtime/v2/logging`):
//! it reads standard output from descriptor 3 and standard error from 4, and closes 5, or writes a byte to it, once it is
//! ready. Its arguments are the names and values; its environment says whose output it is.

use std::io;
use std::io::PipeReader;
use std::io::PipeWriter;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::host::namespaces;

/// How long the program may take until it is ready, and to end after the end of the output.
const PATIENCE: Duration = Duration::from_secs(12);

/// The name under which this program gives the pipes to a logging program, with the numbers that it expects.
pub const LOGGER_NAME: &str = "kiai-logger";

/// Whose output it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    /// The container's id, or that of a process run in it.
    pub(super) id: &'a str,
    /// containerd's namespace.
    pub(super) namespace: &'a str,
}

/// A logging program that runs: the writing ends of its pipes.
pub(super) struct Logger {
    pub(super) stdout: Option<pipe::Sender>,
    pub(super) stderr: Option<pipe::Sender>,
    /// Closed with the streams: after that the program has to end.
    pub(super) over: PipeWriter,
}

/// Starts a program, and waits until it is ready.
pub(super) async fn start(program: &Path, arguments: &[String], owner: Owner<'_>) -> io::Result<Logger> {
    // What cannot be run is known before anything is started.
    rustix::fs::access(program, rustix::fs::Access::EXEC_OK)?;
    let ((stdout, to_stdout), (stderr, to_stderr), (ready, tell)) = (io::pipe()?, io::pipe()?, io::pipe()?);
    let mut command = command(program, arguments, owner)?;
    command.stdin(Stdio::from(OwnedFd::from(stdout)));
    command.stdout(Stdio::from(OwnedFd::from(tell)));
    command.stderr(Stdio::from(OwnedFd::from(stderr)));
    let child = namespaces::spawn(&mut command)?;
    // The command holds copies of the pipes' ends.
    drop(command);
    let (ended, over) = io::pipe()?;
    std::thread::Builder::new().name("logger".into()).spawn(move || attend(child, ended))?;
    let mut word = [0];
    let mut ready = receiver(ready)?;
    // No byte is ready as well: the program has closed its end.
    match tokio::time::timeout(PATIENCE, ready.read(&mut word)).await {
        Ok(read) => read.map(drop)?,
        Err(_) => {
            let why = format!("it is not ready within {} s", PATIENCE.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
    }
    Ok(Logger { stdout: Some(sender(to_stdout)?), stderr: Some(sender(to_stderr)?), over })
}

/// This program, which gives the pipes the right numbers and becomes the other: a process that is started has three
/// descriptors, and this one must not fork, as the guest's memory would be copied.
fn command(program: &Path, arguments: &[String], owner: Owner<'_>) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(LOGGER_NAME).arg(program).args(arguments).env_clear();
    command.env("CONTAINER_ID", owner.id).env("CONTAINER_NAMESPACE", owner.namespace);
    Ok(command)
}

fn receiver(pipe: PipeReader) -> io::Result<pipe::Receiver> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    pipe::Receiver::from_owned_fd(OwnedFd::from(pipe))
}

fn sender(pipe: PipeWriter) -> io::Result<pipe::Sender> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    pipe::Sender::from_owned_fd(OwnedFd::from(pipe))
}

/// Waits for the program's end. When its output has ended, which closes `output`, it has some time left. A thread of its
/// own, as a task would have to be told by a signal; it costs the process's end no time.
fn attend(mut child: Child, output: PipeReader) {
    let ended = ends(&child, &output);
    match ended {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!("a logging program does not end: it is killed");
            let _ = child.kill();
        }
        Err(error) => tracing::warn!(%error, "wait for a logging program"),
    }
    if let Ok(status) = child.wait()
        && !status.success()
    {
        tracing::warn!(%status, "a logging program has ended");
    }
}

/// Whether the program ends, before its output does or not much later.
fn ends(child: &Child, output: &PipeReader) -> io::Result<bool> {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return Ok(true) };
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let either = &mut [PollFd::new(&process, PollFlags::IN), PollFd::new(output, PollFlags::empty())];
    rustix::event::poll(either, None)?;
    let patience = rustix::event::Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
    Ok(rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience))? > 0)
}

/// Becomes the logging program that the arguments name; returns only if that is impossible. To be called by the process
/// that `start` starts, before it opens a descriptor.
pub fn become_logger(arguments: &[std::ffi::OsString]) -> io::Error {
    match prepare() {
        Ok(()) => {}
        Err(error) => return error,
    }
    let Some((program, arguments)) = arguments.split_first() else {
        return io::Error::other("no program");
    };
    Command::new(program).args(arguments).exec()
}

/// Moves the standard streams to the descriptors 3, 5 and 4, and puts /dev/null in their places.
fn prepare() -> io::Result<()> {
    use rustix::io::FdFlags;
    let streams = [(rustix::stdio::stdin(), 3), (rustix::stdio::stderr(), 4), (rustix::stdio::stdout(), 5)];
    for (stream, number) in streams {
        let moved = rustix::io::fcntl_dupfd_cloexec(stream, number)?;
        if std::os::fd::AsRawFd::as_raw_fd(&moved) != number {
            return Err(io::Error::other(format!("descriptor {number} is in use")));
        }
        rustix::io::fcntl_setfd(&moved, FdFlags::empty())?;
        // It stays open for the program.
        std::mem::forget(moved);
    }
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logging_program_gets_its_arguments_and_whose_output_it_is() {
        let owner = Owner { id: "c", namespace: "k8s.io" };
        let command = command(Path::new("/bin/logger"), &["a".into(), "b c".into()], owner).unwrap();
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments, ["/bin/logger", "a", "b c"]);
        let environment: Vec<_> = command.get_envs().map(|(name, value)| (name, value.unwrap())).collect();
        let expected = [("CONTAINER_ID", "c"), ("CONTAINER_NAMESPACE", "k8s.io")];
        assert_eq!(environment, expected.map(|(name, value)| (name.as_ref(), value.as_ref())));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error_at_once() {
        let owner = Owner { id: "c", namespace: "n" };
        let error = start(Path::new("/does/not/exist"), &[], owner).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
