//! One process of a container, from its start to its end.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::io::{Copying, Terminal, Whole};
use crate::cgroup::Cgroup;
use crate::fault::{Fault, Result};
use crate::reaper::{Exit, ExitWatch, ended};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Status and time.
    pub exit: Exit,
    /// The OOM killer struck in the container's cgroup while the process ran.
    pub out_of_memory: bool,
    /// Bytes that had been written to standard output, or shown by the terminal, by then.
    pub stdout_bytes: u64,
    /// Bytes that had been written to standard error.
    pub stderr_bytes: u64,
}

/// A process that was started for the host: a container's init or one of `exec`.
#[derive(Debug)]
pub struct Process {
    /// In the guest's root namespace.
    pub pid: i32,
    exit: ExitWatch,
    ended: watch::Receiver<Option<Ended>>,
    terminal: Option<Arc<Terminal>>,
    copying: Mutex<Copying>,
}

/// What is known of a process that has just been built.
pub(super) struct Fresh {
    pub(super) pid: i32,
    pub(super) exit: ExitWatch,
    pub(super) terminal: Option<Arc<Terminal>>,
    pub(super) copying: Copying,
    pub(super) whole: Whole,
}

impl Process {
    /// Follows a process to its end. `last` is done when it has ended, before that is told.
    pub(super) fn follow(fresh: Fresh, cgroup: Cgroup, last: impl FnOnce() + Send + 'static) -> Arc<Self> {
        let (sender, receiver) = watch::channel(None);
        let mut exit = fresh.exit.clone();
        let kills_before = cgroup.oom_kills();
        tokio::spawn(async move {
            let exit = ended(&mut exit).await;
            let out_of_memory = cgroup.oom_kills() > kills_before;
            last();
            let stdout_bytes = written(fresh.whole.stdout).await;
            let stderr_bytes = written(fresh.whole.stderr).await;
            sender.send_replace(Some(Ended { exit, out_of_memory, stdout_bytes, stderr_bytes }));
        });
        Arc::new(Self {
            pid: fresh.pid,
            exit: fresh.exit,
            ended: receiver,
            terminal: fresh.terminal,
            copying: Mutex::new(fresh.copying),
        })
    }

    /// It has ended.
    pub fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits for its end alone.
    pub async fn exited(&self) -> Exit {
        ended(&mut self.exit.clone()).await
    }

    /// Waits for its end, and tells how much it had written.
    pub async fn wait(&self) -> Result<Ended> {
        let mut ended = self.ended.clone();
        let ended = ended.wait_for(Option::is_some).await.map(|ended| *ended).ok().flatten();
        ended.ok_or_else(|| Fault::Internal(anyhow::anyhow!("process {} is not followed", self.pid)))
    }

    /// Delivers a signal.
    ///
    /// The pid cannot be another process's: it is freed only by the reaper, which records the exit in the
    /// same step and runs on the thread this runs on.
    pub fn signal(&self, signal: u32) -> Result<()> {
        if self.has_exited() {
            return Err(Fault::NotFound(format!("process {} has ended", self.pid)));
        }
        crate::sys::kill(self.pid, signal).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Fault::InvalidArgument(format!("{signal} is no signal")),
            Some(libc::ESRCH) => Fault::NotFound(format!("process {} has ended", self.pid)),
            _ => Fault::Internal(anyhow::Error::new(error).context(format!("signal process {}", self.pid))),
        })
    }

    /// Resizes its terminal's window.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        let none = || Fault::FailedPrecondition(format!("process {} has no terminal", self.pid));
        Ok(self.terminal.as_ref().ok_or_else(none)?.resize(rows, columns)?)
    }

    /// Ends the copying of its streams, whatever is left in them.
    pub fn hang_up(&self) {
        *self.copying.lock() = Copying::default();
    }
}

/// Of an output that is not copied, or not any more, nothing has to arrive.
async fn written(whole: Option<oneshot::Receiver<u64>>) -> u64 {
    match whole {
        Some(whole) => whole.await.unwrap_or(0),
        None => 0,
    }
}
