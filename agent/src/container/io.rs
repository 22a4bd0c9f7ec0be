//! Standard streams: between a process's pipes or terminal and vsock connections to the host.
//!
//! Each stream has a connection of its own, so a full one holds back only itself: the process blocks on its
//! pipe until the host has taken what came before (vsock credit), and the other way round. End of file is
//! passed on in both directions. If the host goes away, output is read and dropped, for a container must
//! not die of a lost client; if the process closes its input, the connection is closed.
//!
//! When is output whole? When the process has ended, what its pipe holds at that moment is still to be
//! handed over, and then it is (`Drained`). A child of the process can keep the pipe open and go on writing:
//! that goes on being copied, but nobody waits for it.

use std::fs::File;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::Context;
use kiai_protocol::agent::Stdio;
use kiai_protocol::ports::HOST_CID;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_vsock::{VsockAddr, VsockStream};

use crate::fault::{Fault, Result};
use crate::reaper::{ExitWatch, ended};
use crate::sys;

/// Bytes moved at once. A pipe holds as many.
const CHUNK: usize = 64 * 1024;

/// Connections to the host, one for each stream it wants.
#[derive(Debug)]
pub(super) struct Streams {
    stdin: Option<VsockStream>,
    stdout: Option<VsockStream>,
    stderr: Option<VsockStream>,
}

impl Streams {
    /// Connects to the ports the host has named.
    pub(super) async fn connect(stdio: &Stdio) -> Result<Self> {
        Ok(Self {
            stdin: connect("stdin", stdio.stdin_port).await?,
            stdout: connect("stdout", stdio.stdout_port).await?,
            stderr: connect("stderr", stdio.stderr_port).await?,
        })
    }
}

async fn connect(name: &str, port: u32) -> Result<Option<VsockStream>> {
    if port == 0 {
        return Ok(None);
    }
    match VsockStream::connect(VsockAddr::new(HOST_CID, port)).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => Err(Fault::FailedPrecondition(format!("connect {name} to host port {port}: {error}"))),
    }
}

/// What the process gets, and the other ends that wait for it to be built.
#[derive(Debug)]
pub(super) struct Pipes {
    stdin: Option<(pipe::Sender, VsockStream)>,
    outputs: Vec<(pipe::Receiver, VsockStream)>,
}

/// Makes the pipes of a process without a terminal. Returns its three descriptors beside them.
///
/// They belong to `owner`, so that a process of that user can open `/dev/stdout` again.
pub(super) fn pipes(streams: Streams, owner: u32) -> anyhow::Result<(Vec<OwnedFd>, Pipes)> {
    let null = || File::options().read(true).write(true).open("/dev/null").context("open /dev/null");
    let mut theirs = Vec::with_capacity(3);
    let mut pipes = Pipes { stdin: None, outputs: Vec::new() };
    match streams.stdin {
        None => theirs.push(null()?.into()),
        Some(stream) => {
            let (reader, writer) = new_pipe(owner)?;
            theirs.push(reader);
            pipes.stdin = Some((pipe::Sender::from_owned_fd(writer)?, stream));
        }
    }
    for stream in [streams.stdout, streams.stderr] {
        match stream {
            None => theirs.push(null()?.into()),
            Some(stream) => {
                let (reader, writer) = new_pipe(owner)?;
                theirs.push(writer);
                pipes.outputs.push((pipe::Receiver::from_owned_fd(reader)?, stream));
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

/// Tells that the output present at a process's end has been handed over, one for each output.
pub(super) type Drained = Vec<oneshot::Receiver<()>>;

/// Copying under way; dropping it ends it.
#[derive(Debug, Default)]
pub(super) struct Copying(
    #[expect(dead_code, reason = "held for its drop, which aborts the tasks")] JoinSet<()>,
);

impl Pipes {
    /// Starts to copy for the process that `exit` tells the end of.
    pub(super) fn start(self, exit: &ExitWatch) -> (Copying, Drained) {
        let mut tasks = JoinSet::new();
        if let Some((pipe, stream)) = self.stdin {
            tasks.spawn(copy_input(stream, pipe));
        }
        let mut drained = Drained::new();
        for (pipe, stream) in self.outputs {
            let (done, waits) = oneshot::channel();
            tasks.spawn(copy_output(Output::Pipe(pipe), Some(stream), exit.clone(), done));
            drained.push(waits);
        }
        (Copying(tasks), drained)
    }
}

/// Starts to copy for a process with a terminal.
pub(super) fn start_terminal(
    streams: Streams,
    terminal: &Arc<Terminal>,
    exit: &ExitWatch,
) -> (Copying, Drained) {
    let mut tasks = JoinSet::new();
    if let Some(stream) = streams.stdin {
        tasks.spawn(type_input(stream, terminal.clone()));
    }
    let (done, waits) = oneshot::channel();
    let output = Output::Terminal(terminal.clone());
    tasks.spawn(copy_output(output, streams.stdout, exit.clone(), done));
    (Copying(tasks), vec![waits])
}

/// Where output comes from.
enum Output {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
}

impl Output {
    async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read(buffer).await,
            Self::Terminal(terminal) => terminal.read(buffer).await,
        }
    }

    /// Bytes that can be read now.
    fn waiting(&self) -> u64 {
        match self {
            Self::Pipe(pipe) => rustix::io::ioctl_fionread(pipe.as_fd()),
            Self::Terminal(terminal) => rustix::io::ioctl_fionread(terminal.0.get_ref()),
        }
        .unwrap_or(0)
    }
}

/// Copies until end of file. Dropping `drained` tells as well that nothing is left.
async fn copy_output(
    mut from: Output,
    mut to: Option<VsockStream>,
    mut exit: ExitWatch,
    drained: oneshot::Sender<()>,
) {
    let mut buffer = vec![0; CHUNK];
    let mut drained = Some(drained);
    // Bytes still to be handed over since the process has ended.
    let mut owed = None;
    loop {
        if owed == Some(0)
            && let Some(drained) = drained.take()
        {
            let _ = drained.send(());
        }
        let read = tokio::select! {
            biased;
            _ = ended(&mut exit), if owed.is_none() => {
                owed = Some(from.waiting());
                continue;
            }
            read = from.read(&mut buffer) => read,
        };
        let length = match read {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) => {
                tracing::error!("read output: {error}");
                break;
            }
        };
        if let Some(stream) = &mut to
            && let Err(error) = stream.write_all(&buffer[..length]).await
        {
            tracing::debug!("the host has left an output: {error}");
            to = None;
        }
        owed = owed.map(|owed: u64| owed.saturating_sub(length as u64));
    }
    if let Some(stream) = to {
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// Copies the host's bytes into the process's input until either side ends.
async fn copy_input(mut from: VsockStream, mut to: pipe::Sender) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) => {
                    tracing::debug!("the host has left an input: {error}");
                    return;
                }
            },
            // The process and all who share its input have closed it.
            _ = to.ready(Interest::ERROR) => {
                tracing::debug!("a process has closed its input");
                return;
            }
        };
        match to.write_all(&buffer[..length]).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return,
            Err(error) => {
                tracing::error!("write input: {error}");
                return;
            }
        }
    }
}

/// Types the host's bytes into a terminal. Their end means nothing: a terminal is hung up, not closed.
async fn type_input(mut from: VsockStream, to: Arc<Terminal>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
