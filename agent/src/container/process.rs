//! One process of a container, from its start to its end.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::io::{Copying, Terminal, Whole};
use crate::cgroup::Cgroup;
use crate::fault::{Fault, Result};
use crate::reaper::{ExitWatch, GuestExit, ended};

/// The end of a process, and how much it had written by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessEnd {
    /// Exit status and time.
    pub exit: GuestExit,
    /// The OOM killer killed a process of the container's cgroup while this process ran.
    pub out_of_memory: bool,
    /// Bytes that had been written to standard output, or shown by the terminal, by then.
    pub stdout_bytes: u64,
    /// Bytes that had been written to standard error.
    pub stderr_bytes: u64,
}

/// A process of a container: its init, or a process of `exec`.
#[derive(Debug)]
pub struct Process {
    /// The process's pid in the guest's root namespace.
    pub pid: i32,
    exit: ExitWatch,
    ended: watch::Receiver<Option<ProcessEnd>>,
    terminal: Option<Arc<Terminal>>,
    copying: Mutex<Copying>,
}

/// A process that has just been built.
pub(super) struct BuiltProcess {
    pub(super) pid: i32,
    pub(super) exit: ExitWatch,
    pub(super) terminal: Option<Arc<Terminal>>,
    pub(super) copying: Copying,
    pub(super) whole: Whole,
}

impl Process {
    /// Follows a process to its end. `last` is called when it has ended, before its end is reported.
    pub(super) fn follow(
        fresh: BuiltProcess,
        cgroup: Cgroup,
        last: impl FnOnce() + Send + 'static,
    ) -> Arc<Self> {
        let (sender, receiver) = watch::channel(None);
        let mut exit = fresh.exit.clone();
        let kills_before = cgroup.oom_kills();
        tokio::spawn(async move {
            let exit = ended(&mut exit).await;
            let out_of_memory = cgroup.oom_kills() > kills_before;
            last();
            let stdout_bytes = written(fresh.whole.stdout).await;
            let stderr_bytes = written(fresh.whole.stderr).await;
            sender.send_replace(Some(ProcessEnd { exit, out_of_memory, stdout_bytes, stderr_bytes }));
        });
        Arc::new(Self {
            pid: fresh.pid,
            exit: fresh.exit,
            ended: receiver,
            terminal: fresh.terminal,
            copying: Mutex::new(fresh.copying),
        })
    }

    /// Whether the process has ended.
    pub fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits for the process's end, but not for its output.
    pub async fn exited(&self) -> GuestExit {
        ended(&mut self.exit.clone()).await
    }

    /// Waits for the process's end; the result says how much it had written.
    pub async fn wait(&self) -> Result<ProcessEnd> {
        let mut ended = self.ended.clone();
        let ended = ended.wait_for(Option::is_some).await.map(|ended| *ended).ok().flatten();
        ended.ok_or_else(|| Fault::Internal(anyhow::anyhow!("process {} is not followed", self.pid)))
    }

    /// Sends a signal to the process.
    ///
    /// The pid cannot be another process's: it is freed only by the reaper, which records the exit in the
    /// same step and runs on the thread this runs on.
    pub fn signal(&self, signal: u32) -> Result<()> {
        if self.has_exited() {
            return Err(Fault::NotFound(format!("process {} has ended", self.pid)));
        }
        crate::sys::kill(self.pid, signal).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Fault::InvalidArgument(format!("{signal} is not a signal")),
            Some(libc::ESRCH) => Fault::NotFound(format!("process {} has ended", self.pid)),
            _ => Fault::Internal(anyhow::Error::new(error).context(format!("signal process {}", self.pid))),
        })
    }

    /// Sets the size of the process's terminal.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        let none = || Fault::FailedPrecondition(format!("process {} has no terminal", self.pid));
        Ok(self.terminal.as_ref().ok_or_else(none)?.resize(rows, columns)?)
    }

    /// Ends the copying of the process's streams; undelivered output is dropped.
    pub fn hang_up(&self) {
        *self.copying.lock() = Copying::default();
    }
}

/// The bytes that the host has to receive of an output: none if it is not copied, or not any more.
async fn written(whole: Option<oneshot::Receiver<u64>>) -> u64 {
    match whole {
        Some(whole) => whole.await.unwrap_or(0),
        None => 0,
    }
}
