//! One process: a container's init, or one run in it later. How it changes its state is in `lifecycle`.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use kiai_protocol::agent::ProcessRequest;
use parking_lot::Mutex;

use super::TaskError;
use super::io::Streams;
use super::io::Uris;
use super::io::Written;
use super::lifecycle::Lifecycle;
use super::lifecycle::Unchanged;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0..=255, 128 + signal; 255 when the microVM ended under it.
    pub status: u32,
    /// Seconds since 1970, of the host's clock.
    pub seconds: i64,
    /// 0..=999_999_999.
    pub nanoseconds: i32,
}

impl Exit {
    /// An exit that happened just now, by the host's clock: the guest's may be off.
    pub fn now(status: u32) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            status,
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos().cast_signed(),
        }
    }
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// Built, not started.
    Created,
    /// Runs.
    Running,
    /// Frozen with its container.
    Paused,
    /// Over, its output handed on.
    Stopped(Exit),
}

impl ProcessState {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// One process.
pub struct Process {
    /// Container and process, as the agent names them.
    pub id: ProcessRequest,
    /// Where its streams lead.
    pub uris: Uris,
    /// It has a terminal.
    pub terminal: bool,
    pub(super) lifecycle: Lifecycle,
    streams: Mutex<Option<std::sync::Arc<Streams>>>,
}

impl Process {
    pub(super) fn new(container_id: &str, exec_id: &str, uris: Uris, terminal: bool) -> Self {
        let mut id = ProcessRequest::new();
        id.container_id = container_id.into();
        id.exec_id = exec_id.into();
        Self { id, uris, terminal, lifecycle: Lifecycle::new(), streams: Mutex::default() }
    }

    /// For messages: "container c" or "container c: process e".
    pub fn name(&self) -> String {
        match self.id.exec_id.as_str() {
            "" => format!("container {}", self.id.container_id),
            exec_id => format!("container {}: process {exec_id}", self.id.container_id),
        }
    }

    /// Where it is in its life.
    pub fn state(&self) -> ProcessState {
        self.lifecycle.state()
    }

    pub(super) fn set_streams(&self, streams: Streams) {
        *self.streams.lock() = Some(std::sync::Arc::new(streams));
    }

    pub(super) fn drop_streams(&self) {
        self.streams.lock().take();
    }

    /// Returns once the output of an exited process is handed on, which had written so much.
    pub(super) async fn drain(&self, written: Written) {
        let streams = self.streams.lock().clone();
        if let Some(streams) = streams {
            streams.drain(written).await;
        }
    }

    /// Waits for the end, whenever it began to run.
    pub async fn wait(&self) -> Exit {
        self.lifecycle.wait().await
    }

    /// Ends the process's input once all that was written to it is delivered.
    pub fn close_input(&self) {
        if let Some(streams) = self.streams.lock().as_ref() {
            streams.close_input();
        }
    }

    /// Refuses a request that needs a living process.
    pub(super) fn alive(&self, request: &'static str) -> Result<(), TaskError> {
        match self.state() {
            ProcessState::Running | ProcessState::Paused => Ok(()),
            ProcessState::Created if self.id.exec_id.is_empty() => Ok(()),
            state @ ProcessState::Created => Err(self.wrong_state(request, state)),
            ProcessState::Stopped(_) => Err(TaskError::Finished(self.name())),
        }
    }

    pub(super) fn wrong_state(&self, request: &'static str, state: ProcessState) -> TaskError {
        TaskError::State { what: self.name(), request, state: state.name() }
    }

    /// Why a request changed nothing.
    pub(super) fn unchanged(&self, request: &'static str, why: Unchanged<TaskError>) -> TaskError {
        match why {
            Unchanged::State(ProcessState::Stopped(_)) if request != "start" => {
                TaskError::Finished(self.name())
            }
            Unchanged::State(state) => self.wrong_state(request, state),
            Unchanged::Guest(error) => error,
        }
    }
}
