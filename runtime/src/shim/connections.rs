//! Connections to the shim's socket, each with a token: when the last token is dropped, every answer is written.
//!
//! ttrpc writes answers from tasks of its own and does not report their end, so a process that exits could lose the
//! last answers.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// The token of a connection; nothing is sent over the channel.
type Token = mpsc::Sender<Infallible>;

/// Listens; each connection, and the listener itself, holds a clone of `open`. Call it inside a tokio runtime.
pub(super) fn listen(listener: std::os::unix::net::UnixListener, open: Token) -> io::Result<Listener> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    Ok(Listener::new(futures::stream::unfold((listener, open), |(listener, open)| async move {
        let accepted = listener.accept().await;
        let connection = accepted.map(|(stream, _)| Connection { stream, _open: open.clone() });
        Some((connection, (listener, open)))
    })))
}

/// A stream with its token.
struct Connection {
    stream: UnixStream,
    _open: Token,
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
