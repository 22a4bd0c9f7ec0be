//! The copying itself: one task a stream.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::sink::Sink;

const BUFFER_BYTES: usize = 64 * 1024;

/// Copies what the guest writes until it ends. `progress` counts the bytes handed on.
pub(super) async fn output(
    stream_name: &'static str,
    connected: oneshot::Receiver<UnixStream>,
    mut sink: Sink,
    progress: Arc<AtomicU64>,
) {
    let Ok(mut stream) = connected.await else { return };
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut broken = false;
    loop {
        let count = match stream.read(&mut buffer).await {
            // A guest that died resets its streams: the end like any other, and told elsewhere.
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        if !broken && let Err(error) = sink.write(&buffer[..count]).await {
            // Go on reading: a client that went away must not stop the process in the guest.
            tracing::info!(stream = stream_name, %error, "output is dropped from here on");
            broken = true;
        }
        progress.fetch_add(count as u64, Ordering::Relaxed);
    }
    if let Err(error) = sink.finish().await
        && !broken
    {
        tracing::info!(stream = stream_name, %error, "the end of the output is lost");
    }
}

/// Copies what clients write until the last of them has closed, then tells the guest.
pub(super) async fn input(connected: oneshot::Receiver<UnixStream>, mut source: impl AsyncRead + Unpin) {
    let Ok(mut stream) = connected.await else { return };
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match source.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => {
                tracing::info!(%error, "reading standard input");
                break;
            }
        };
        // The process closed its input: the fifo is let go, and its writers see that.
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // The guest sees end of file after all that was written. The stream stays open until it has read it.
    if stream.shutdown().await.is_ok() {
        let _ = stream.read(&mut [0]).await;
    }
}
