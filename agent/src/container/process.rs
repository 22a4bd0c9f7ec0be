//! One process of a container, from its start to its end.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::io::{Copying, Drained, Terminal};
use crate::cgroup::Cgroup;
use crate::fault::{Fault, Result};
use crate::reaper::{ExitWatch, GuestExit, ended};

/// The end of a process, once its output is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessEnd {
    /// Exit status and time.
    pub exit: GuestExit,
    /// The OOM killer killed a process of the container's cgroup while this process ran.
    pub out_of_memory: bool,
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
    pub(super) drained: Drained,
}

impl Process {
    /// Follows a process to its end. `last` is called when it has ended, before its output is waited for.
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
            for drained in fresh.drained {
                // An error means that the copying has ended.
                let _ = drained.await;
            }
            sender.send_replace(Some(ProcessEnd { exit, out_of_memory }));
        });
        Arc::new(Self {
            pid: fresh.pid,
            exit: fresh.exit,
            ended: receiver,
            terminal: fresh.terminal,
            copying: Mutex::new(fresh.copying),
        })
    }

    /// Whether the process has ended; its output may not be delivered yet.
    pub fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits for the process's end, but not for its output.
    pub async fn exited(&self) -> GuestExit {
        ended(&mut self.exit.clone()).await
    }

    /// Waits for the process's end and until its output is delivered.
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
