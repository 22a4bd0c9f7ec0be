//! The copying itself: one task a stream.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::sync::watch;

use super::sink::Sink;

const BUFFER_BYTES: usize = 64 * 1024;

/// Counts the bytes of an output that are delivered, and reports when the process's own are.
pub(super) struct Meter {
    /// Bytes delivered, of all outputs of the process.
    pub(super) progress: Arc<AtomicU64>,
    /// How many bytes of this output are the process's own, once that is known.
    pub(super) owed: watch::Receiver<Option<u64>>,
    /// Sent when as many are delivered; dropped at the end.
    pub(super) whole: oneshot::Sender<()>,
}

/// Copies what the guest writes until it ends.
pub(super) async fn output(
    stream_name: &'static str,
    connected: oneshot::Receiver<UnixStream>,
    mut sink: Sink,
    meter: Meter,
) {
    let Ok(mut stream) = connected.await else { return };
    let Meter { progress, mut owed, whole } = meter;
    let mut whole = Some(whole);
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut broken, mut delivered) = (false, 0);
    loop {
        if owed.borrow_and_update().is_some_and(|owed| delivered >= owed)
            && let Some(whole) = whole.take()
        {
            report(stream_name, &mut broken, sink.finish().await);
            let _ = whole.send(());
        }
        let count = tokio::select! {
            Ok(()) = owed.changed(), if whole.is_some() => continue,
            read = stream.read(&mut buffer) => match read {
                // A guest that died resets its streams: that end is like any other, and reported elsewhere.
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            },
        };
        // Go on reading: a client that went away must not stop the process in the guest.
        if !broken {
            report(stream_name, &mut broken, sink.write(&buffer[..count]).await);
        }
        delivered += count as u64;
        progress.fetch_add(count as u64, Ordering::Relaxed);
    }
    report(stream_name, &mut broken, sink.finish().await);
}

fn report(stream_name: &'static str, broken: &mut bool, result: io::Result<()>) {
    if let Err(error) = result
        && !std::mem::replace(broken, true)
    {
        tracing::info!(stream = stream_name, %error, "output is dropped from here on");
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
