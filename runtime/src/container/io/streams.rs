//! The streams of one process: ports listened on before the agent is told of them, tasks that copy, their end.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kiai_protocol::agent::Stdio;
use kiai_protocol::ports::FIRST_STREAM_PORT;
use kiai_vmm::vsock::VsockPorts;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::task::JoinHandle;

use super::StdioError;
use super::StdioUri;
use super::Uris;
use super::copy;
use super::fifo;
use super::fifo::Kept;
use super::sink::Sink;

/// How long an exit waits for a reader of the output that takes nothing.
const STALLED_READER: Duration = Duration::from_secs(10);

/// Hands out vsock ports for streams, one sandbox's.
#[derive(Debug)]
pub struct PortNumbers(AtomicU32);

impl Default for PortNumbers {
    fn default() -> Self {
        Self(AtomicU32::new(FIRST_STREAM_PORT))
    }
}

impl PortNumbers {
    fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// One process's streams. Dropping them ends every copy.
pub struct Streams {
    ports: Arc<VsockPorts>,
    listened: Vec<u32>,
    outputs: Mutex<Vec<JoinHandle<()>>>,
    /// All tasks, for the end.
    tasks: Vec<AbortHandle>,
    /// Readers of ours on the output fifos.
    readers: Mutex<Vec<Kept>>,
    /// Our writer on the input fifo.
    writer: Mutex<Option<Kept>>,
    progress: Arc<AtomicU64>,
}

impl Streams {
    /// Opens what the URIs name and listens for the guest's connections; `Stdio` tells the agent where. With a
    /// terminal there is no stderr.
    pub fn open(
        uris: &Uris,
        terminal: bool,
        ports: &Arc<VsockPorts>,
        numbers: &PortNumbers,
    ) -> Result<(Self, Stdio), StdioError> {
        let mut streams = Self {
            ports: ports.clone(),
            listened: Vec::new(),
            outputs: Mutex::default(),
            tasks: Vec::new(),
            readers: Mutex::default(),
            writer: Mutex::default(),
            progress: Arc::default(),
        };
        let mut stdio = Stdio::new();
        stdio.stdin_port = streams.open_input(&StdioUri::parse("stdin", &uris.stdin)?, numbers)?;
        stdio.stdout_port = streams.open_output("stdout", &uris.stdout, numbers)?;
        if !terminal {
            stdio.stderr_port = streams.open_output("stderr", &uris.stderr, numbers)?;
        }
        Ok((streams, stdio))
    }

    fn open_input(&mut self, uri: &StdioUri, numbers: &PortNumbers) -> Result<u32, StdioError> {
        let StdioUri::Path(path) = uri else { return Ok(0) };
        let failed = |source| StdioError::Open { stream: "stdin", path: path.clone(), source };
        if fifo::is_fifo(path).map_err(failed)? {
            let (receiver, writer) = fifo::input(path).map_err(failed)?;
            let (port, accepted) = self.listen("stdin", numbers)?;
            *self.writer.lock() = Some(writer);
            self.tasks.push(tokio::spawn(copy::input(accepted, receiver)).abort_handle());
            Ok(port)
        } else {
            let file = std::fs::File::open(path).map_err(failed)?;
            let (port, accepted) = self.listen("stdin", numbers)?;
            let source = tokio::fs::File::from(file);
            self.tasks.push(tokio::spawn(copy::input(accepted, source)).abort_handle());
            Ok(port)
        }
    }

    fn open_output(
        &mut self,
        stream: &'static str,
        uri: &str,
        numbers: &PortNumbers,
    ) -> Result<u32, StdioError> {
        let (sink, reader) = Sink::open(stream, &StdioUri::parse(stream, uri)?)?;
        if matches!(sink, Sink::None) {
            return Ok(0);
        }
        let (port, accepted) = self.listen(stream, numbers)?;
        self.readers.lock().extend(reader);
        let task = tokio::spawn(copy::output(stream, accepted, sink, self.progress.clone()));
        self.tasks.push(task.abort_handle());
        self.outputs.lock().push(task);
        Ok(port)
    }

    /// A port of the host for one connection; a guest that opens more of them is refused.
    fn listen(
        &mut self,
        stream: &'static str,
        numbers: &PortNumbers,
    ) -> Result<(u32, oneshot::Receiver<std::os::unix::net::UnixStream>), StdioError> {
        let port = numbers.next();
        let (accept, accepted) = oneshot::channel();
        let accept = Mutex::new(Some(accept));
        self.ports
            .listen(
                port,
                Box::new(move |connection| {
                    if let Some(accept) = accept.lock().take() {
                        // The receiver is gone when the streams were dropped.
                        let _ = accept.send(connection);
                    }
                }),
            )
            .map_err(|source| StdioError::Port { stream, source })?;
        self.listened.push(port);
        Ok((port, accepted))
    }

    /// CloseIO: the guest's input ends once every client has closed and all they wrote is delivered.
    pub fn close_input(&self) {
        self.writer.lock().take();
    }

    /// To be called when the process has exited: returns once its output is handed on whole. With nobody to read
    /// it that is at once; a reader that is there but takes nothing for ten seconds is not waited for, though the
    /// copying goes on behind its back.
    pub async fn drain(&self) {
        self.unlisten();
        self.close_input();
        self.readers.lock().clear();
        let outputs = std::mem::take(&mut *self.outputs.lock());
        let mut outputs = futures::future::join_all(outputs);
        let mut before = self.progress.load(Ordering::Relaxed);
        loop {
            match tokio::time::timeout(STALLED_READER, &mut outputs).await {
                Ok(_) => return,
                Err(_) => {
                    let now = self.progress.load(Ordering::Relaxed);
                    if now == before {
                        tracing::info!("the reader of the output takes nothing: the exit is told regardless");
                        return;
                    }
                    before = now;
                }
            }
        }
    }
}

impl Streams {
    /// A connection that has not come by now never will.
    fn unlisten(&self) {
        for port in &self.listened {
            self.ports.unlisten(*port);
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.unlisten();
        for task in &self.tasks {
            task.abort();
        }
    }
}
