//! The streams of one process: opened on the host before the agent is called, connected once it has built the process,
//! drained at its end.

use std::collections::BTreeMap;
use std::io::PipeWriter;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kiai_protocol::agent::Stdio;
use kiai_protocol::stream::Secret;
use kiai_protocol::stream::StandardStream;
use kiai_protocol::stream::StreamName;
use kiai_vmm::vsock::VsockPorts;
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::StdioError;
use super::StdioUri;
use super::Uris;
use super::copy;
use super::copy::Meter;
use super::fifo;
use super::fifo::Kept;
use super::logger;
use super::logger::Logger;
use super::logger::Owner;
use super::sink::Sink;
use crate::agent::new_secret;
use crate::agent::open_stream;

/// How long an exit waits for a reader of the output that takes nothing.
const STALLED_READER: Duration = Duration::from_secs(10);

fn stream_name(stream: StandardStream) -> &'static str {
    match stream {
        StandardStream::Stdin => "stdin",
        StandardStream::Stdout => "stdout",
        StandardStream::Stderr => "stderr",
    }
}

/// The number of bytes that a process has written to its outputs by its exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Of standard output, or of a terminal.
    pub stdout: u64,
    /// Of standard error.
    pub stderr: u64,
}

impl Written {
    /// Not known: an output is whole at its end.
    pub const UNKNOWN: Self = Self { stdout: u64::MAX, stderr: u64::MAX };
}

/// A copied output: `owed` is the number of bytes to deliver, `whole` receives once they are delivered.
struct Copied {
    stream: StandardStream,
    owed: watch::Sender<Option<u64>>,
    whole: oneshot::Receiver<()>,
}

/// One process's streams. Dropping them ends every copy.
pub struct Streams {
    secret: Secret,
    /// The streams without a connection, each with the sender that its copy awaits.
    unconnected: Vec<(StandardStream, oneshot::Sender<UnixStream>)>,
    outputs: Mutex<Vec<Copied>>,
    /// All tasks, for the end.
    tasks: Vec<AbortHandle>,
    /// Readers of ours on the output fifos.
    readers: Mutex<Vec<Kept>>,
    /// Our writer on the input fifo.
    writer: Mutex<Option<Kept>>,
    progress: Arc<AtomicU64>,
    /// Of each logging program; closing them tells that the output has ended.
    loggers: Vec<PipeWriter>,
}

/// Starts the logging programs of the outputs: one for each URI, by URI.
async fn loggers<'a>(
    outputs: &[(StandardStream, &'a String)],
    owner: Owner<'_>,
) -> Result<BTreeMap<&'a str, Logger>, StdioError> {
    let mut loggers = BTreeMap::new();
    for &(stream, uri) in outputs {
        let stream = stream_name(stream);
        if let StdioUri::Program { path, arguments } = StdioUri::parse(stream, uri)?
            && !loggers.contains_key(uri.as_str())
        {
            let started = logger::start(&path, &arguments, owner).await;
            let started = started.map_err(|source| StdioError::Logger { stream, path, source })?;
            loggers.insert(uri.as_str(), started);
        }
    }
    Ok(loggers)
}

impl Streams {
    /// Opens the files of the URIs, and starts their logging programs, which are told `id`; the returned `Stdio` tells the agent which streams there will be. With a terminal
    /// there is no stderr.
    pub async fn open(uris: &Uris, terminal: bool, id: &str) -> Result<(Self, Stdio), StdioError> {
        let mut streams = Self {
            secret: new_secret().map_err(StdioError::Secret)?,
            unconnected: Vec::new(),
            outputs: Mutex::default(),
            tasks: Vec::new(),
            readers: Mutex::default(),
            writer: Mutex::default(),
            progress: Arc::default(),
            loggers: Vec::new(),
        };
        let mut stdio = Stdio::new();
        stdio.secret = streams.secret.0.into();
        stdio.stdin = streams.open_input(&StdioUri::parse("stdin", &uris.stdin)?)?;
        let outputs = [(StandardStream::Stdout, &uris.stdout), (StandardStream::Stderr, &uris.stderr)];
        let outputs = if terminal { &outputs[..1] } else { &outputs[..] };
        let owner = Owner { id, namespace: &uris.namespace };
        let mut loggers = loggers(outputs, owner).await?;
        for &(stream, uri) in outputs {
            let logger = loggers.get_mut(uri.as_str());
            let opened = streams.open_output(stream, uri, (logger, terminal))?;
            let named = if stream == StandardStream::Stderr { &mut stdio.stderr } else { &mut stdio.stdout };
            *named = opened;
        }
        streams.loggers = loggers.into_values().map(|logger| logger.over).collect();
        Ok((streams, stdio))
    }

    /// Connects every stream, once the agent has built the process.
    pub async fn connect(&mut self, ports: &VsockPorts) -> Result<(), StdioError> {
        let secret = self.secret;
        let connecting = self.unconnected.drain(..).map(|(stream, connected)| async move {
            let opened = open_stream(ports, StreamName { secret, stream }).await;
            let connection =
                opened.map_err(|source| StdioError::Connect { stream: stream_name(stream), source })?;
            // The receiver is gone when the streams were dropped.
            let _ = connected.send(connection);
            Ok(())
        });
        futures::future::try_join_all(connecting).await.map(drop)
    }

    fn open_input(&mut self, uri: &StdioUri) -> Result<bool, StdioError> {
        let StdioUri::Path(path) = uri else { return Ok(false) };
        let failed = |source| StdioError::Open { stream: "stdin", path: path.clone(), source };
        if fifo::is_fifo(path).map_err(failed)? {
            let (receiver, writer) = fifo::input(path).map_err(failed)?;
            *self.writer.lock() = Some(writer);
            let connected = self.expect(StandardStream::Stdin);
            self.tasks.push(tokio::spawn(copy::input(connected, receiver)).abort_handle());
        } else {
            let source = tokio::fs::File::from(std::fs::File::open(path).map_err(failed)?);
            let connected = self.expect(StandardStream::Stdin);
            self.tasks.push(tokio::spawn(copy::input(connected, source)).abort_handle());
        }
        Ok(true)
    }

    fn open_output(
        &mut self,
        stream: StandardStream,
        uri: &str,
        (logger, terminal): (Option<&mut Logger>, bool),
    ) -> Result<bool, StdioError> {
        let name = stream_name(stream);
        let end = logger.and_then(|logger| match stream {
            StandardStream::Stderr => logger.stderr.take(),
            _ => logger.stdout.take(),
        });
        let (sink, reader) = match end {
            Some(end) => (Sink::Fifo(end), None),
            None => Sink::open(name, &StdioUri::parse(name, uri)?, terminal)?,
        };
        if matches!(sink, Sink::None) {
            return Ok(false);
        }
        let connected = self.expect(stream);
        self.readers.lock().extend(reader);
        let ((owed, told), (done, whole)) = (watch::channel(None), oneshot::channel());
        let meter = Meter { progress: self.progress.clone(), owed: told, whole: done };
        self.tasks.push(tokio::spawn(copy::output(name, connected, sink, meter)).abort_handle());
        self.outputs.lock().push(Copied { stream, owed, whole });
        Ok(true)
    }

    fn expect(&mut self, stream: StandardStream) -> oneshot::Receiver<UnixStream> {
        let (connect, connected) = oneshot::channel();
        self.unconnected.push((stream, connect));
        connected
    }

    /// CloseIO: the guest's input ends once every client has closed and all they wrote is delivered.
    pub fn close_input(&self) {
        self.writer.lock().take();
    }

    /// To be called when the process has exited: returns once its own output is delivered whole. With nobody to read
    /// it that is at once; a reader that is there but takes nothing for ten seconds is not waited for. Then the copying
    /// goes on behind its back, as it does for what children of the process still write.
    pub async fn drain(&self, written: Written) {
        self.close_input();
        self.readers.lock().clear();
        let outputs = std::mem::take(&mut *self.outputs.lock());
        for output in &outputs {
            let bytes = if output.stream == StandardStream::Stderr { written.stderr } else { written.stdout };
            output.owed.send_replace(Some(bytes));
        }
        // An error is the end of the output, which is as good.
        let mut outputs = futures::future::join_all(outputs.into_iter().map(|output| output.whole));
        let mut before = self.progress.load(Ordering::Relaxed);
        loop {
            match tokio::time::timeout(STALLED_READER, &mut outputs).await {
                Ok(_) => return,
                Err(_) => {
                    let now = self.progress.load(Ordering::Relaxed);
                    if now == before {
                        tracing::info!(
                            "the reader of the output takes nothing: the exit is reported regardless"
                        );
                        return;
                    }
                    before = now;
                }
            }
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
