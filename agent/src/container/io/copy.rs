//! The copying itself: one task a stream.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::Terminal;
use crate::reaper::{ExitWatch, ended};
use crate::stream::StreamSlot;

/// Bytes moved at once. A pipe holds as many.
const CHUNK: usize = 64 * 1024;

/// More than the kernel holds between the two sides of a terminal (TTYB_DEFAULT_MEM_LIMIT and a line's buffer).
const MOST_OF_TERMINAL: usize = 1 << 20;

/// The agent's end of an output.
pub(super) enum Output {
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

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pipe(pipe) => pipe.as_fd(),
            Self::Terminal(terminal) => terminal.0.get_ref().as_fd(),
        }
    }

    /// The number of bytes that were written and not yet read. A terminal's are read into `rest`: the kernel does not
    /// count all of them, and only a read that finds nothing shows the end.
    fn waiting(&self, rest: &mut Vec<u8>) -> u64 {
        if let Self::Terminal(_) = self {
            let mut buffer = [0; 4096];
            while rest.len() < MOST_OF_TERMINAL {
                match rustix::io::read(self.fd(), &mut buffer) {
                    Ok(0) => break,
                    Ok(length) => rest.extend_from_slice(&buffer[..length]),
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
            return rest.len() as u64;
        }
        rustix::io::ioctl_fionread(self.fd()).unwrap_or(0)
    }
}

/// A process's output, and how much of it there was at the process's end.
struct Source {
    from: Output,
    exit: ExitWatch,
    /// Sent once, at the process's end or, if that comes first, at the output's.
    whole: Option<oneshot::Sender<u64>>,
    /// Bytes read so far.
    taken: u64,
    /// Read, and not yet given out.
    rest: Vec<u8>,
}

impl Source {
    /// The next bytes; none at the end of the output.
    async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if !self.rest.is_empty() {
                let length = self.rest.len().min(buffer.len());
                buffer[..length].copy_from_slice(&self.rest[..length]);
                self.rest.drain(..length);
                return Ok(length);
            }
            tokio::select! {
                biased;
                _ = ended(&mut self.exit), if self.whole.is_some() => self.report(),
                read = self.from.read(buffer) => {
                    self.taken += *read.as_ref().unwrap_or(&0) as u64;
                    return read;
                }
            }
        }
    }

    /// Does `work`, for which the host may take as long as it likes. The process's end is reported meanwhile.
    async fn while_reporting<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        if self.whole.is_some() {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = ended(&mut self.exit) => self.report(),
            }
        }
        work.await
    }

    fn report(&mut self) {
        if let Some(whole) = self.whole.take() {
            let waiting = self.from.waiting(&mut self.rest);
            let _ = whole.send(self.taken + waiting);
            self.taken += self.rest.len() as u64;
        }
    }
}

/// Copies until end of file. Sends `whole` the number of bytes that had been written when the process ended.
pub(super) async fn output<S: AsyncRead + AsyncWrite + Unpin>(
    from: Output,
    to: Option<StreamSlot<S>>,
    exit: ExitWatch,
    whole: oneshot::Sender<u64>,
) {
    let mut source = Source { from, exit, whole: Some(whole), taken: 0, rest: Vec::new() };
    let mut to = match to {
        Some(slot) => source.while_reporting(slot.connected()).await,
        None => None,
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = match source.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) => {
                tracing::error!("read output: {error}");
                break;
            }
        };
        if let Some(stream) = &mut to
            && let Err(error) = source.while_reporting(stream.write_all(&buffer[..length])).await
        {
            tracing::debug!("the host has closed an output: {error}");
            to = None;
        }
    }
    source.report();
    if let Some(mut stream) = to {
        let _ = stream.shutdown().await;
    }
}

/// Copies the host's bytes into the process's input until either side ends.
pub(super) async fn input<S: AsyncRead + AsyncWrite + Unpin>(from: StreamSlot<S>, mut to: pipe::Sender) {
    let Some(mut from) = from.connected().await else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) => {
                    tracing::debug!("the host has closed an input: {error}");
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
pub(super) async fn typed<S: AsyncRead + AsyncWrite + Unpin>(from: StreamSlot<S>, to: Arc<Terminal>) {
    let Some(mut from) = from.connected().await else { return };
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
