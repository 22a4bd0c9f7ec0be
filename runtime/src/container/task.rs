//! What can be asked of a container that was created.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kiai_protocol::agent::ExecProcessRequest;
use kiai_protocol::agent::StatsContainerResponse;
use oci_spec::runtime::LinuxResources;
use oci_spec::runtime::Process as ProcessSpec;
use parking_lot::Mutex;

use super::Exit;
use super::Process;
use super::ProcessState;
use super::Report;
use super::Reporter;
use super::TaskError;
use super::io::Streams;
use super::io::Uris;
use super::lifecycle::NotRemoved;
use super::limits::Applied;
use super::mounts::ContainerMounts;
use super::plug::Plugged;
use super::table::NoEntry;
use super::table::Table;
use crate::plan::Limits;
use crate::plan::check_id;
use crate::sandbox::Assignment;
use crate::sandbox::Sandbox;

/// File in the bundle that says why the sandbox ended by the guest's fault.
const SANDBOX_ERROR: &str = "sandbox-error.txt";
/// File in the bundle that says that memory ran out.
const OOM: &str = "oom";

/// A container of a sandbox.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its first process.
    pub init: Arc<Process>,
    /// As it was asked for.
    pub(super) process: ProcessSpec,
    sandbox: Arc<Sandbox>,
    /// Closed once the container is being removed.
    execs: Table<Exec>,
    assigned: Mutex<Option<(ContainerMounts, Assignment)>>,
    /// Locked while that changes; none once the container is being removed.
    pub(super) plugged: tokio::sync::Mutex<Option<Plugged>>,
    /// Locked while they change, and while device rules do.
    pub(super) applied: tokio::sync::Mutex<Applied>,
    reporter: Reporter,
    /// Told already that memory ran out.
    out_of_memory: AtomicBool,
}

/// A further process: registered first, run later.
struct Exec {
    process: Arc<Process>,
    /// The OCI `process` object.
    spec: ProcessSpec,
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// How it had ended.
    pub exit: Exit,
}

impl Container {
    pub(super) fn new(
        id: String,
        bundle: PathBuf,
        sandbox: Arc<Sandbox>,
        init: Process,
        assigned: (ContainerMounts, Assignment),
        (applied, process): (Applied, ProcessSpec),
        reporter: Reporter,
    ) -> Self {
        Self {
            id,
            bundle,
            init: Arc::new(init),
            sandbox,
            process,
            execs: Table::default(),
            assigned: Mutex::new(Some(assigned)),
            plugged: tokio::sync::Mutex::new(Some(Plugged::default())),
            applied: tokio::sync::Mutex::new(applied),
            reporter,
            out_of_memory: AtomicBool::default(),
        }
    }

    pub(super) fn report(&self, report: Report) {
        (self.reporter)(report);
    }

    /// The init when `exec_id` is empty, else the process of that name.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, TaskError> {
        if exec_id.is_empty() { Ok(self.init.clone()) } else { Ok(self.find(exec_id)?.process.clone()) }
    }

    fn find(&self, exec_id: &str) -> Result<Arc<Exec>, TaskError> {
        self.execs.get(exec_id).ok_or_else(|| self.no_process(exec_id))
    }

    fn no_process(&self, exec_id: &str) -> TaskError {
        TaskError::NoProcess { container_id: self.id.clone(), exec_id: exec_id.into() }
    }

    /// Registers a process to be run; `spec` is the OCI `process` object as JSON.
    pub fn exec(&self, exec_id: &str, uris: Uris, terminal: bool, spec: &[u8]) -> Result<(), TaskError> {
        check_id(exec_id).map_err(|e| TaskError::Malformed { what: "exec", reason: e.to_string() })?;
        let mut spec: ProcessSpec = serde_json::from_slice(spec)
            .map_err(|e| TaskError::Malformed { what: "process of exec", reason: e.to_string() })?;
        spec.set_terminal(Some(terminal));
        self.init.alive("exec")?;
        let process = Arc::new(Process::new(&self.id, exec_id, uris, terminal));
        let name = process.name();
        let tell = || self.report(Report::ExecAdded { exec_id: exec_id.into() });
        self.execs.add(exec_id, Arc::new(Exec { process, spec }), tell).map_err(|why| match why {
            NoEntry::Taken => TaskError::Exists(name),
            NoEntry::Closed => TaskError::Finished(self.init.name()),
        })
    }

    /// Starts the init, or a registered process.
    pub async fn start(self: &Arc<Self>, exec_id: &str) -> Result<(), TaskError> {
        self.guest()?;
        let states = (ProcessState::Created, ProcessState::Running);
        if exec_id.is_empty() {
            let ask = async { Ok(self.guest()?.agent.start_container(&self.id).await?) };
            let started = self.init.lifecycle.change(states, ask, || self.report(Report::Started)).await;
            return started.map_err(|why| self.init.unchanged("start", why));
        }
        let exec = self.find(exec_id)?;
        let tell = || {
            self.report(Report::ExecStarted { exec_id: exec_id.into() });
            self.watch(exec.process.clone());
        };
        let started = exec.process.lifecycle.change(states, self.ask_for(&exec), tell).await;
        started.map_err(|why| exec.process.unchanged("start", why))
    }

    /// Has the agent run a process.
    async fn ask_for(&self, exec: &Exec) -> Result<(), TaskError> {
        let process = &exec.process;
        let sandbox = self.guest()?;
        let (streams, stdio) =
            Streams::open(&process.uris, process.terminal, &sandbox.ports, &sandbox.port_numbers)?;
        let mut request = ExecProcessRequest::new();
        request.container_id.clone_from(&self.id);
        request.exec_id.clone_from(&process.id.exec_id);
        request.process = serde_json::to_vec(&exec.spec)
            .map_err(|e| TaskError::Malformed { what: "process of exec", reason: e.to_string() })?;
        request.stdio = Some(stdio).into();
        if let Some(size) = exec.spec.console_size() {
            request.rows = u32::try_from(size.height()).unwrap_or(0);
            request.columns = u32::try_from(size.width()).unwrap_or(0);
        }
        sandbox.agent.exec_process(request).await?;
        process.set_streams(streams);
        Ok(())
    }

    /// Waits for a process's end and tells it, once its output is handed on.
    pub(super) fn watch(self: &Arc<Self>, process: Arc<Process>) {
        let container = self.clone();
        tokio::spawn(async move {
            let (exit, out_of_memory) = container.end(&process).await;
            process.drain().await;
            let tell = || {
                if out_of_memory {
                    container.out_of_memory();
                }
                let exec_id = process.id.exec_id.clone();
                tracing::debug!(process = process.name(), status = exit.status, "exited");
                container.report(Report::Exited { exec_id, exit });
            };
            process.lifecycle.end(exit, tell).await;
        });
    }

    /// How the process ended, and whether memory ran out.
    async fn end(&self, process: &Process) -> (Exit, bool) {
        let endings = &self.sandbox.endings;
        let answer = tokio::select! {
            answer = self.sandbox.agent.wait_process(&process.id) => answer,
            ended = endings.wait() => return (self.sandbox_ended(&ended), false),
        };
        match answer {
            // The guest's clock says when, but a client compares with the host's.
            Ok(answer) => (Exit::now(answer.exit_status & 0xff), answer.out_of_memory),
            // The agent's answer would have come: the guest is going, or gone.
            Err(error) if error.answer().is_none() => (self.sandbox_ended(&endings.wait().await), false),
            Err(error) => {
                // Its container was removed under it.
                tracing::debug!(process = process.name(), error = %crate::failure::chain(&error), "wait");
                (Exit::now(137), false)
            }
        }
    }

    /// The sandbox ended under the process: by its own fault that is told in the bundle.
    fn sandbox_ended(&self, ended: &crate::sandbox::Ended) -> Exit {
        if ended.expected {
            return Exit::now(137);
        }
        let path = self.bundle.join(SANDBOX_ERROR);
        if let Err(error) = std::fs::write(&path, ended.report()) {
            tracing::warn!(path = %path.display(), %error, "cannot be written");
        }
        Exit::now(255)
    }

    /// Memory ran out: told once, and left in the bundle.
    pub fn out_of_memory(&self) {
        if !self.out_of_memory.swap(true, Ordering::AcqRel) {
            if let Err(error) = std::fs::write(self.bundle.join(OOM), "") {
                tracing::warn!(%error, "the bundle's oom file cannot be written");
            }
            self.report(Report::OutOfMemory);
        }
    }

    /// Sends a signal to the init or a process, or to every process of the container.
    pub async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        let process = self.process(exec_id)?;
        process.alive("kill")?;
        self.guest()?.agent.signal(&process.id, signal, all).await.map_err(|error| match error.answer() {
            Some(ttrpc::Code::NOT_FOUND) => TaskError::Finished(process.name()),
            _ => error.into(),
        })
    }

    /// Removes the container, or forgets one process of it, once. Only what has ended or never started can go.
    pub async fn delete(&self, exec_id: &str) -> Result<Removed, TaskError> {
        if !exec_id.is_empty() {
            return self.forget(exec_id).await;
        }
        let work = async |state| {
            self.execs.close();
            self.remove(state == ProcessState::Created).await;
            self.exec_ends().await;
        };
        let tell = |exit| self.report(Report::Removed { exit });
        let exit = self.init.lifecycle.remove(work, tell).await.map_err(|why| match why {
            NotRemoved::State(state) => self.init.wrong_state("delete", state),
            NotRemoved::Gone => TaskError::NoContainer(self.id.clone()),
        })?;
        self.init.drop_streams();
        Ok(Removed { exit })
    }

    async fn forget(&self, exec_id: &str) -> Result<Removed, TaskError> {
        let exec = self.find(exec_id)?;
        let process = &exec.process;
        let work = async |state| {
            if state != ProcessState::Created
                && let Ok(sandbox) = self.guest()
                && let Err(error) = sandbox.agent.remove_process(&process.id).await
            {
                tracing::warn!(process = process.name(), error = %crate::failure::chain(&error), "remove");
            }
            self.execs.remove(exec_id, &exec);
        };
        let exit = process.lifecycle.remove(work, |_| {}).await.map_err(|why| match why {
            NotRemoved::State(state) => process.wrong_state("delete", state),
            NotRemoved::Gone => self.no_process(exec_id),
        })?;
        process.drop_streams();
        Ok(Removed { exit })
    }

    /// Returns once the end of every process that was run in the container is told, those among them that are being
    /// started. The container is gone, which killed them; a guest that does not say so is not waited for longer
    /// than this.
    async fn exec_ends(&self) {
        const PATIENCE: Duration = Duration::from_secs(10);
        let execs = self.execs.all();
        let ends = futures::future::join_all(execs.iter().map(|exec| exec.process.lifecycle.over()));
        if tokio::time::timeout(PATIENCE, ends).await.is_err() {
            tracing::warn!(container = self.id, "a process of a removed container does not end");
        }
    }

    async fn remove(&self, force: bool) {
        if let Ok(sandbox) = self.guest()
            && let Err(error) = sandbox.agent.remove_container(&self.id, force).await
        {
            // Mounts and devices are released all the same; what is left in the guest ends with the guest.
            tracing::warn!(container = self.id, error = %crate::failure::chain(&error), "remove");
        }
        if let Some(plugged) = self.plugged.lock().await.take() {
            plugged.unassign(&self.sandbox).await;
        }
        let Some((mounts, assignment)) = self.assigned.lock().take() else { return };
        self.sandbox.unassign(assignment).await;
        if tokio::task::spawn_blocking(move || drop(mounts)).await.is_err() {
            tracing::error!(container = self.id, "unmounting panicked");
        }
    }

    /// Freezes every process.
    pub async fn pause(&self) -> Result<(), TaskError> {
        let ask = async { Ok(self.guest()?.agent.pause_container(&self.id).await?) };
        let states = (ProcessState::Running, ProcessState::Paused);
        let paused = self.init.lifecycle.change(states, ask, || self.report(Report::Paused)).await;
        paused.map_err(|why| self.init.unchanged("pause", why))
    }

    /// Thaws them.
    pub async fn resume(&self) -> Result<(), TaskError> {
        let ask = async { Ok(self.guest()?.agent.resume_container(&self.id).await?) };
        let states = (ProcessState::Paused, ProcessState::Running);
        let resumed = self.init.lifecycle.change(states, ask, || self.report(Report::Resumed)).await;
        resumed.map_err(|why| self.init.unchanged("resume", why))
    }

    /// Changes resources; `resources` is the OCI object as JSON. The machine grows before and shrinks after, and
    /// if anything fails all is as it was.
    pub async fn update(&self, resources: Vec<u8>) -> Result<(), TaskError> {
        self.init.alive("update")?;
        let malformed =
            |e: serde_json::Error| TaskError::Malformed { what: "resources", reason: e.to_string() };
        let changes: LinuxResources = serde_json::from_slice(&resources).map_err(malformed)?;
        let sandbox = self.guest()?;
        let mut applied = self.applied.lock().await;
        let host_mib = crate::host::facts::memory_mib();
        let limits = |applied: Applied| Limits::default().changed(&applied.resources(), host_mib);
        let after = applied.with(&changes);
        let back = serde_json::to_vec(&applied.resources()).map_err(malformed)?;
        let limit = |there: bool| {
            sandbox.agent.update_container(&self.id, if there { resources.clone() } else { back.clone() })
        };
        sandbox.resize(limits(*applied), limits(after), limit).await?;
        *applied = after;
        Ok(())
    }

    /// Figures of its cgroup.
    pub async fn stats(&self) -> Result<StatsContainerResponse, TaskError> {
        self.init.alive("stats")?;
        Ok(self.guest()?.agent.stats(&self.id).await?)
    }

    /// Its processes, as the guest numbers them.
    pub async fn pids(&self) -> Result<Vec<u32>, TaskError> {
        self.init.alive("pids")?;
        Ok(self.guest()?.agent.list_processes(&self.id).await?)
    }

    /// Tells a process's terminal its size.
    pub async fn resize(&self, exec_id: &str, rows: u32, columns: u32) -> Result<(), TaskError> {
        let process = self.process(exec_id)?;
        process.alive("resize")?;
        if !process.terminal {
            return Err(TaskError::Malformed {
                what: "resize",
                reason: format!("{} has no terminal", process.name()),
            });
        }
        Ok(self.guest()?.agent.resize_terminal(&process.id, (rows, columns)).await?)
    }

    /// Returns once the end of every process that ran is told; for the end of the sandbox.
    pub async fn ended(&self) {
        self.exec_ends().await;
        self.init.wait().await;
    }

    pub(super) fn guest(&self) -> Result<&Sandbox, TaskError> {
        if self.sandbox.endings.ended().is_some() { Err(TaskError::SandboxEnded) } else { Ok(&self.sandbox) }
    }
}
