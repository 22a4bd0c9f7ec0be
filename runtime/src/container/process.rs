//! One process: a container's init, or a process run in it later. `lifecycle` has its state.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use kiai_protocol::agent::ProcessRequest;
use parking_lot::Mutex;

use super::TaskError;
use super::io::Streams;
use super::io::Uris;
use super::io::Written;
use super::lifecycle::KILLED;
use super::lifecycle::Lifecycle;
use super::lifecycle::Unchanged;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0..=255, or 128 + signal; 255 if the microVM ended before the process.
    pub status: u32,
    /// Seconds since 1970, by the host's clock.
    pub seconds: i64,
    /// Nanoseconds, 0..=999_999_999.
    pub nanoseconds: i32,
}

impl Exit {
    /// An exit at this moment, by the host's clock, because the guest's may be wrong.
    pub fn now(status: u32) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            status,
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos().cast_signed(),
        }
    }
}

/// The state of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// It was created and not started.
    Created,
    /// It runs.
    Running,
    /// It is frozen with its container.
    Paused,
    /// It has ended, and its output is delivered.
    Stopped(Exit),
}

impl ProcessState {
    /// The state as a word for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// A process of a container.
pub struct Process {
    /// The ids of the container and the process, as the agent's requests have them.
    pub id: ProcessRequest,
    /// The URIs of its standard streams.
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
        // An init that is removed is killed while it waits for its start; a process that was only registered never
        // was, and clients take another status than 0 for its failure.
        let never_started = if exec_id.is_empty() { KILLED } else { 0 };
        Self { id, uris, terminal, lifecycle: Lifecycle::new(never_started), streams: Mutex::default() }
    }

    /// Its name in messages: "container c" or "container c: process e".
    pub fn name(&self) -> String {
        match self.id.exec_id.as_str() {
            "" => format!("container {}", self.id.container_id),
            exec_id => format!("container {}: process {exec_id}", self.id.container_id),
        }
    }

    /// The process's state.
    pub fn state(&self) -> ProcessState {
        self.lifecycle.state()
    }

    pub(super) fn set_streams(&self, streams: Streams) {
        *self.streams.lock() = Some(std::sync::Arc::new(streams));
    }

    pub(super) fn drop_streams(&self) {
        self.streams.lock().take();
    }

    /// Returns once the output of an exited process is delivered; `written` says how much it had written.
    pub(super) async fn drain(&self, written: Written) {
        let streams = self.streams.lock().clone();
        if let Some(streams) = streams {
            streams.drain(written).await;
        }
    }

    /// Waits for the end of the process, even if it was not started yet.
    pub async fn wait(&self) -> Exit {
        self.lifecycle.wait().await
    }

    /// Ends the process's standard input once everything that was written to it is delivered.
    pub fn close_input(&self) {
        if let Some(streams) = self.streams.lock().as_ref() {
            streams.close_input();
        }
    }

    /// Refuses a request for a process that has ended, or was not started.
    pub(super) fn alive(&self, request: &'static str) -> Result<(), TaskError> {
        match self.state() {
            ProcessState::Running | ProcessState::Paused => Ok(()),
            ProcessState::Created if self.id.exec_id.is_empty() => Ok(()),
            state @ ProcessState::Created => Err(self.wrong_state(request, state)),
            ProcessState::Stopped(_) => Err(TaskError::Finished(self.name())),
        }
    }

    pub(super) fn wrong_state(&self, request: &'static str, state: ProcessState) -> TaskError {
        TaskError::State { object: self.name(), request, state: state.name() }
    }

    /// The error of a request that did not change the state.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_never_started_has_not_failed_and_an_init_was_killed() {
        for (exec_id, status) in [("exec", 0), ("", 137)] {
            let process = Process::new("container", exec_id, Uris::default(), false);
            let exit = process.lifecycle.remove(async |_| (), |_| ()).await.unwrap();
            assert_eq!((exit.status, process.wait().await.status), (status, status), "{exec_id:?}");
        }
    }
}
