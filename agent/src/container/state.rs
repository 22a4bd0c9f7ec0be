//! A container between the host's calls, and the calls that need no more than its state.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::RwLock;
use tokio::task::AbortHandle;

use super::Process;
use super::devices::Devices;
use crate::cgroup::Cgroup;
use crate::fault::{Fault, Result};
use crate::storage::Storages;

/// The phase of a container's life. Whether it has stopped, only its init tells.
#[derive(Debug)]
pub enum Phase {
    /// Its init waits to be started; the pipe reports the start: see [`crate::oci::Built::started`].
    Created(pipe::Receiver),
    /// Its program runs.
    Running,
    /// Its program is frozen.
    Paused,
    /// It is being removed, or starting it has failed.
    Over,
}

/// A container that has been built.
#[derive(Debug)]
pub struct Container {
    pub(super) id: String,
    pub(super) cgroup: Cgroup,
    /// The directory of its bundle and state.
    pub(super) directory: PathBuf,
    pub(super) storages: Vec<PathBuf>,
    pub(super) init: Arc<Process>,
    /// Write-locked to change the phase; read-locked while the phase must not change.
    pub(super) phase: RwLock<Phase>,
    /// Processes of `exec`; `None` while one is being built.
    pub(super) execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    /// Its devices, and the rules in force.
    pub(super) devices: Devices,
    pub(super) oom_watch: AbortHandle,
}

impl Container {
    /// libcontainer's state directory, in which this container is the only one.
    pub(super) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The init if `exec_id` is empty, otherwise the process of `exec` with that id.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let process = self.execs.lock().get(exec_id).cloned().flatten();
        process.ok_or_else(|| Fault::NotFound(format!("container {} has no process {exec_id:?}", self.id)))
    }

    /// Starts the program. Returns once it runs, or an error with the reason why it cannot.
    pub async fn start(&self) -> Result<()> {
        let mut phase = self.phase.write().await;
        let pipe = match std::mem::replace(&mut *phase, Phase::Over) {
            Phase::Created(pipe) if !self.init.has_exited() => pipe,
            other => {
                *phase = other;
                return Err(self.wrong_phase("started", &phase));
            }
        };
        // This does not clone: it writes a state file and a message to the init's socket.
        let mut built = libcontainer::container::Container::load(self.state().join(&self.id))
            .with_context(|| format!("load the state of container {}", self.id))?;
        built.start().with_context(|| format!("start container {}", self.id))?;
        let mut reason = String::new();
        pipe.take(8 * 1024).read_to_string(&mut reason).await.context("read the start pipe")?;
        if !reason.is_empty() {
            return Err(Fault::InvalidArgument(format!("container {}: {reason}", self.id)));
        }
        *phase = Phase::Running;
        Ok(())
    }

    /// Freezes every process of the container.
    pub async fn pause(&self) -> Result<()> {
        let mut phase = self.phase.write().await;
        if !matches!(*phase, Phase::Running) || self.init.has_exited() {
            return Err(self.wrong_phase("paused", &phase));
        }
        self.cgroup.freeze(true).await.with_context(|| format!("freeze container {}", self.id))?;
        *phase = Phase::Paused;
        Ok(())
    }

    /// Thaws every process of the container.
    pub async fn resume(&self) -> Result<()> {
        let mut phase = self.phase.write().await;
        if !matches!(*phase, Phase::Paused) {
            return Err(self.wrong_phase("resumed", &phase));
        }
        self.cgroup.freeze(false).await.with_context(|| format!("thaw container {}", self.id))?;
        *phase = Phase::Running;
        Ok(())
    }

    /// Sends a signal to the init or a process of `exec`; with `all`, to every process of the container.
    pub fn signal(&self, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let process = self.process(exec_id)?;
        if !all {
            return process.signal(signal);
        }
        let pids = self.pids()?;
        if pids.is_empty() {
            return Err(Fault::NotFound(format!("container {} has no processes", self.id)));
        }
        if signal == libc::SIGKILL.unsigned_abs() {
            self.cgroup.kill().with_context(|| format!("kill container {}", self.id))?;
            return Ok(());
        }
        for pid in pids {
            let pid = i32::try_from(pid).context("a pid is an i32")?;
            match crate::sys::kill(pid, signal) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return Err(Fault::InvalidArgument(format!("{signal} is not a signal")));
                }
                // The process has ended meanwhile.
                _ => {}
            }
        }
        Ok(())
    }

    /// The pids of the container's processes in the guest's root namespace.
    pub fn pids(&self) -> Result<Vec<u32>> {
        match self.cgroup.pids() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            other => Ok(other.with_context(|| format!("list the processes of container {}", self.id))?),
        }
    }

    /// The container's devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Statistics of the container's cgroup.
    pub fn stats(&self) -> kiai_protocol::agent::StatsContainerResponse {
        self.cgroup.stats()
    }

    /// Forgets a process of `exec` that has ended.
    pub fn remove_process(&self, exec_id: &str) -> Result<()> {
        let process = self.process(exec_id)?;
        if exec_id.is_empty() || !process.has_exited() {
            return Err(Fault::FailedPrecondition(format!(
                "process {exec_id:?} of container {} has not ended",
                self.id
            )));
        }
        process.hang_up();
        self.execs.lock().remove(exec_id);
        Ok(())
    }

    /// Removes the container's processes, cgroup, mounts and state. Without `force` it must have stopped.
    ///
    /// The caller forgets the container afterwards. Can be called again after an error.
    pub async fn remove(&self, storages: &Storages, force: bool) -> Result<()> {
        let mut phase = self.phase.write().await;
        if !force && !self.init.has_exited() {
            return Err(self.wrong_phase("removed", &phase));
        }
        *phase = Phase::Over;
        self.cgroup.remove().await?;
        self.init.exited().await;
        self.oom_watch.abort();
        self.init.hang_up();
        for (_, process) in self.execs.lock().drain() {
            if let Some(process) = process {
                process.hang_up();
            }
        }
        storages.release(&self.storages).await;
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(anyhow::Error::new(error).context(format!("remove {:?}", self.directory)).into())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn wrong_phase(&self, verb: &str, phase: &Phase) -> Fault {
        let is = match phase {
            _ if self.init.has_exited() => "stopped",
            Phase::Created(_) => "not started",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Over => "being removed",
        };
        Fault::FailedPrecondition(format!("container {} cannot be {verb}: it is {is}", self.id))
    }
}
