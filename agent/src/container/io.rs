//! Standard streams: between a process's pipes or terminal and the host's vsock connections.
//!
//! Each stream has a connection of its own, so a full one holds back only itself: the process blocks on its
//! pipe until the host has taken what came before (vsock credit), and the other way round. End of file is
//! passed on in both directions. If the host goes away, output is read and dropped, for a container must
//! not die of a lost client; if the process closes its input, the connection is closed. The host connects once it
//! knows that the process is built: until then output waits in the pipe.
//!
//! When is output whole? When what the pipe held at the process's end is delivered: the host is told how many bytes
//! that is in all (`Whole`). A child of the process can keep the pipe open and go on writing: that goes on being
//! copied, but nobody waits for it.

mod copy;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use kiai_protocol::agent::Stdio;
use kiai_protocol::stream::{Secret, StandardStream, StreamName};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use self::copy::Output;
use crate::fault::{Fault, Result};
use crate::reaper::ExitWatch;
use crate::stream::{StreamSlot, StreamTable};
use crate::sys;

/// The slots of the connections that the host will open, one for each stream it wants.
#[derive(Debug)]
pub(super) struct Streams {
    stdin: Option<StreamSlot>,
    stdout: Option<StreamSlot>,
    stderr: Option<StreamSlot>,
}

impl Streams {
    /// Reserves a slot for each stream that the host wants.
    pub(super) fn reserve(stdio: &Stdio, table: &StreamTable) -> Result<Self> {
        let reserve = |wanted: bool, stream| -> Result<_> {
            if !wanted {
                return Ok(None);
            }
            let secret = stdio.secret[..].try_into().map_err(|_| {
                Fault::InvalidArgument(format!(
                    "a secret of streams has 16 bytes, not {}",
                    stdio.secret.len()
                ))
            })?;
            table.reserve(StreamName { secret: Secret(secret), stream }).map(Some)
        };
        Ok(Self {
            stdin: reserve(stdio.stdin, StandardStream::Stdin)?,
            stdout: reserve(stdio.stdout, StandardStream::Stdout)?,
            stderr: reserve(stdio.stderr, StandardStream::Stderr)?,
        })
    }
}

/// What the process gets, and the other ends that wait for it to be built.
#[derive(Debug)]
pub(super) struct Pipes {
    stdin: Option<(pipe::Sender, StreamSlot)>,
    stdout: Option<(pipe::Receiver, StreamSlot)>,
    stderr: Option<(pipe::Receiver, StreamSlot)>,
}

/// Makes the pipes of a process without a terminal. Returns its three descriptors beside them.
///
/// They belong to `owner`, so that a process of that user can open `/dev/stdout` again.
pub(super) fn pipes(streams: Streams, owner: u32) -> anyhow::Result<(Vec<OwnedFd>, Pipes)> {
    let null = || File::options().read(true).write(true).open("/dev/null").context("open /dev/null");
    let mut theirs = Vec::with_capacity(3);
    let mut pipes = Pipes { stdin: None, stdout: None, stderr: None };
    match streams.stdin {
        None => theirs.push(null()?.into()),
        Some(stream) => {
            let (reader, writer) = new_pipe(owner)?;
            theirs.push(reader);
            pipes.stdin = Some((pipe::Sender::from_owned_fd(writer)?, stream));
        }
    }
    for (stream, output) in [(streams.stdout, &mut pipes.stdout), (streams.stderr, &mut pipes.stderr)] {
        match stream {
            None => theirs.push(null()?.into()),
            Some(stream) => {
                let (reader, writer) = new_pipe(owner)?;
                theirs.push(writer);
                *output = Some((pipe::Receiver::from_owned_fd(reader)?, stream));
            }
        }
    }
    Ok((theirs, pipes))
}

fn new_pipe(owner: u32) -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")?;
    // Only our end may be non-blocking; that flag is of the open file, and each end is one of its own.
    rustix::fs::fchown(&reader, Some(rustix::fs::Uid::from_raw(owner)), None).context("own a pipe")?;
    Ok((reader, writer))
}

/// The master side of a process's terminal.
#[derive(Debug)]
pub(super) struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    /// Takes the master side and gives the terminal to `owner`.
    pub(super) fn new(master: OwnedFd, owner: u32) -> anyhow::Result<Arc<Self>> {
        let flags = rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC;
        let slave =
            rustix::pty::ioctl_tiocgptpeer(&master, flags).context("open the terminal's other side")?;
        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(owner)), None)
            .context("own the terminal")?;
        let status = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, status | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Arc::new(Self(sys::watch(master, Interest::READABLE | Interest::WRITABLE)?)))
    }

    /// Sets the window's size; 0 rows and columns leave it.
    pub(super) fn resize(&self, rows: u32, columns: u32) -> anyhow::Result<()> {
        if rows == 0 && columns == 0 {
            return Ok(());
        }
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size = Winsize { ws_row: cells(rows), ws_col: cells(columns), ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.0.get_ref(), size).context("resize the terminal")
    }

    async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await;
        match read {
            // Nobody has the other side open any more.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

/// The number of bytes that had been written to each copied output when the process ended.
#[derive(Debug, Default)]
pub(super) struct Whole {
    pub(super) stdout: Option<oneshot::Receiver<u64>>,
    pub(super) stderr: Option<oneshot::Receiver<u64>>,
}

/// Copying under way; dropping it ends it.
#[derive(Debug, Default)]
pub(super) struct Copying(
    #[expect(dead_code, reason = "held for its drop, which aborts the tasks")] JoinSet<()>,
);

impl Pipes {
    /// Starts to copy for the process whose end `exit` reports.
    pub(super) fn start(self, exit: &ExitWatch) -> (Copying, Whole) {
        let mut tasks = JoinSet::new();
        if let Some((pipe, stream)) = self.stdin {
            tasks.spawn(copy::input(stream, pipe));
        }
        let mut start = |output: Option<(pipe::Receiver, StreamSlot)>| {
            let (pipe, stream) = output?;
            let (whole, told) = oneshot::channel();
            tasks.spawn(copy::output(Output::Pipe(pipe), Some(stream), exit.clone(), whole));
            Some(told)
        };
        let whole = Whole { stdout: start(self.stdout), stderr: start(self.stderr) };
        (Copying(tasks), whole)
    }
}

/// Starts to copy for a process with a terminal.
pub(super) fn start_terminal(
    streams: Streams,
    terminal: &Arc<Terminal>,
    exit: &ExitWatch,
) -> (Copying, Whole) {
    let mut tasks = JoinSet::new();
    if let Some(stream) = streams.stdin {
        tasks.spawn(copy::typed(stream, terminal.clone()));
    }
    let (whole, told) = oneshot::channel();
    let output = Output::Terminal(terminal.clone());
    tasks.spawn(copy::output(output, streams.stdout, exit.clone(), whole));
    (Copying(tasks), Whole { stdout: Some(told), stderr: None })
}
