//! The copying itself: one task a stream.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::Terminal;
use crate::reaper::{ExitWatch, ended};
use crate::stream::StreamSlot;

/// Bytes moved at once. A pipe holds as many.
const CHUNK: usize = 64 * 1024;

/// How long the output of a process that has ended is kept for a host that does not connect, which it does right
/// after the process is built.
const UNCONNECTED: Duration = Duration::from_secs(20);

/// Where output comes from.
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
pub(super) async fn output<S: AsyncRead + AsyncWrite + Unpin>(
    mut from: Output,
    to: Option<StreamSlot<S>>,
    mut exit: ExitWatch,
    drained: oneshot::Sender<()>,
) {
    let mut to = match to {
        Some(slot) => connected(slot, &mut exit).await,
        None => None,
    };
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
    if let Some(mut stream) = to {
        let _ = stream.shutdown().await;
    }
}

/// The host's connection, unless the process ends and the host still does not connect.
async fn connected<S>(slot: StreamSlot<S>, exit: &mut ExitWatch) -> Option<S> {
    let given_up = async {
        ended(exit).await;
        tokio::time::sleep(UNCONNECTED).await;
    };
    tokio::select! {
        biased;
        connection = slot.connected() => connection,
        () = given_up => {
            tracing::warn!("the host does not connect to an output, which is dropped");
            None
        }
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
pub(super) async fn typed<S: AsyncRead + AsyncWrite + Unpin>(from: StreamSlot<S>, to: Arc<Terminal>) {
    let Some(mut from) = from.connected().await else { return };
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
