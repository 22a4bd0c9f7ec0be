//! Standard streams: bytes between what the client named and the vsock streams of the guest.
//!
//! A client names a fifo, `file:///path` (appended to) or `kiai-log:///path` (JSON lines), or nothing. End of
//! file is passed on in both directions; a full fifo stops reading from the guest, and vsock credit stops the
//! guest.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use kiai_protocol::agent::Stdio;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::failure::Outcome;
use crate::sandbox::Sandbox;
use crate::sandbox::StreamPort;
use crate::store::timestamp::Timestamp;

/// Bytes moved at a time.
const BLOCK: usize = 64 << 10;

/// What the client named, as it wrote it; empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// A fifo.
    pub stdin: String,
    /// A fifo or URI.
    pub stdout: String,
    /// A fifo or URI; unused with a terminal.
    pub stderr: String,
}

/// Ports listened on, before the agent is asked.
pub(super) struct Streams {
    stdin: Option<StreamPort>,
    stdout: Option<StreamPort>,
    stderr: Option<StreamPort>,
}

impl Streams {
    pub(super) fn listen(sandbox: &Sandbox, paths: &StdioPaths, terminal: bool) -> Outcome<Self> {
        let port = |path: &str| (!path.is_empty()).then(|| sandbox.stream_port()).transpose();
        let stderr = if terminal { "" } else { &paths.stderr };
        Ok(Self { stdin: port(&paths.stdin)?, stdout: port(&paths.stdout)?, stderr: port(stderr)? })
    }

    pub(super) fn ports(&self) -> Stdio {
        let port = |stream: &Option<StreamPort>| stream.as_ref().map_or(0, |stream| stream.port);
        Stdio {
            stdin_port: port(&self.stdin),
            stdout_port: port(&self.stdout),
            stderr_port: port(&self.stderr),
            ..Default::default()
        }
    }

    /// Joins the guest's ends with the client's. The agent has answered, so its ends are there.
    pub(super) async fn connect(self, paths: &StdioPaths) -> Outcome<Connected> {
        let mut copies = JoinSet::new();
        let closer = StdinCloser::default();
        if let Some(port) = self.stdin {
            let guest = port.accept().await?;
            let close = closer.notify();
            let path = PathBuf::from(&paths.stdin);
            // Not among the copies: a process may end long before its client closes its input.
            tokio::spawn(async move {
                if let Err(e) = copy_stdin(&path, guest, &close).await {
                    tracing::debug!("stdin {}: {e}", path.display());
                }
            });
        }
        for (port, uri, name) in
            [(self.stdout, &paths.stdout, "stdout"), (self.stderr, &paths.stderr, "stderr")]
        {
            let Some(port) = port else { continue };
            let sink = Sink::open(uri, name).map_err(|e| Failure::host(format!("{name} {uri}"), &e))?;
            let guest = port.accept().await?;
            copies.spawn(async move {
                if let Err(e) = copy_output(guest, sink).await {
                    tracing::warn!("{name}: {e}");
                }
            });
        }
        Ok(Connected { copies, closer })
    }
}

/// Streams that are being copied. Dropping lets the copies go on.
pub(super) struct Connected {
    copies: JoinSet<()>,
    closer: StdinCloser,
}

impl Connected {
    /// Resolves when all output has been handed over.
    pub(super) async fn drained(mut self) {
        while self.copies.join_next().await.is_some() {}
    }

    pub(super) fn stdin_closer(&self) -> StdinCloser {
        self.closer.clone()
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.copies.detach_all();
    }
}

/// Tells the copy of standard input that the client is done.
#[derive(Clone, Default)]
pub(super) struct StdinCloser(Arc<Mutex<Arc<Notify>>>);

impl StdinCloser {
    fn notify(&self) -> Arc<Notify> {
        self.0.lock().clone()
    }

    /// Stands for another stream from now on.
    pub(super) fn replace(&self, other: &Self) {
        let notify = other.notify();
        *self.0.lock() = notify;
    }

    pub(super) fn close(&self) {
        // Kept until somebody waits: the order of the calls does not matter.
        self.0.lock().notify_one();
    }
}

/// From the client's fifo to the guest, until the client's end of file or its request to close.
async fn copy_stdin(path: &Path, mut guest: tokio::net::UnixStream, close: &Notify) -> io::Result<()> {
    let fifo = tokio::select! {
        fifo = open_when_written(path) => fifo?,
        // The process is gone, or its client never comes.
        () = close.notified() => return guest.shutdown().await,
    };
    let mut fifo = pipe::Receiver::from_owned_fd(fifo)?;
    let mut block = vec![0; BLOCK];
    loop {
        let count = tokio::select! {
            count = fifo.read(&mut block) => count?,
            () = close.notified() => break,
        };
        if count == 0 {
            return guest.shutdown().await;
        }
        guest.write_all(&block[..count]).await?;
    }
    // Asked to close: what the client wrote before is still delivered.
    loop {
        match fifo.try_read(&mut block) {
            Ok(0) => break,
            Ok(count) => guest.write_all(&block[..count]).await?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    guest.shutdown().await
}

/// Opens a fifo for reading once somebody has it open for writing: before, reading would end at once.
async fn open_when_written(path: &Path) -> io::Result<OwnedFd> {
    let (sender, opened) = oneshot::channel();
    let waiting = Opening(Some(path.to_owned()));
    let path = path.to_owned();
    // open(2) of a fifo blocks until the other side is there; there is no event for it.
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let _ = sender.send(File::open(path));
    })?;
    let file = opened.await.map_err(io::Error::other)??;
    waiting.done();
    let fd = OwnedFd::from(file);
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Lets the thread in `open_when_written` go if nobody wants its result any more.
struct Opening(Option<PathBuf>);

impl Opening {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // A writer that comes and goes ends the blocking open.
            let mut options = File::options();
            options.write(true);
            std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
            let _ = options.open(path);
        }
    }
}

/// Where output goes.
enum Sink {
    Fifo(pipe::Sender),
    File(File),
    Log { file: File, stream: &'static str, line: Vec<u8> },
}

impl Sink {
    fn open(uri: &str, stream: &'static str) -> io::Result<Self> {
        let append = |path: &str| File::options().append(true).create(true).open(path);
        if let Some(path) = uri.strip_prefix("file://") {
            return Ok(Self::File(append(path)?));
        }
        if let Some(path) = uri.strip_prefix("kiai-log://") {
            return Ok(Self::Log { file: append(path)?, stream, line: Vec::new() });
        }
        if let Some((scheme, _)) = uri.split_once("://") {
            let reason = format!("streams of kind {scheme:?} are not supported");
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        // Open for reading too: a client that comes and goes does not end the stream.
        Ok(Self::Fifo(pipe::OpenOptions::new().read_write(true).open_sender(uri)?))
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Fifo(fifo) => fifo.write_all(bytes).await,
            Self::File(file) => file.write_all(bytes),
            Self::Log { file, stream, line } => {
                for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
                    line.extend(piece);
                    if piece.ends_with(b"\n") || line.len() >= BLOCK {
                        log_line(file, stream, line)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Log { file, stream, line } if !line.is_empty() => log_line(file, stream, line),
            _ => Ok(()),
        }
    }
}

fn log_line(file: &mut File, stream: &str, line: &mut Vec<u8>) -> io::Result<()> {
    let entry = serde_json::json!({
        "time": Timestamp::now().to_string(),
        "stream": stream,
        "log": String::from_utf8_lossy(line),
    });
    line.clear();
    // One write a line: two streams share the file.
    file.write_all(format!("{entry}\n").as_bytes())
}

/// From the guest to the client until the guest's end of file.
async fn copy_output(mut guest: tokio::net::UnixStream, mut sink: Sink) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        match guest.read(&mut block).await {
            Ok(0) => return sink.finish(),
            Ok(count) => sink.write(&block[..count]).await?,
            Err(e) => {
                sink.finish()?;
                return Err(e);
            }
        }
    }
}
