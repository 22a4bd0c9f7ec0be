//! The requests that a created container serves.

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
use super::Hooks;
use super::Process;
use super::ProcessState;
use super::Report;
use super::Reporter;
use super::TaskError;
use super::io::Streams;
use super::io::Uris;
use super::io::Written;
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

/// File in the bundle with the reason why the sandbox ended unexpectedly.
const SANDBOX_ERROR: &str = "sandbox-error.txt";
/// File in the bundle that marks that the container ran out of memory.
const OOM: &str = "oom";

/// How long the end of a process that was killed is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

const SIGKILL: u32 = libc::SIGKILL.unsigned_abs();

/// A container of a sandbox.
pub struct Container {
    /// The container's id.
    pub id: String,
    /// The directory of its bundle.
    pub bundle: PathBuf,
    /// Its first process.
    pub init: Arc<Process>,
    /// The OCI `process` object of its init.
    pub(super) process: ProcessSpec,
    hooks: Hooks,
    sandbox: Arc<Sandbox>,
    /// Processes run in it later. Closed once the container is being removed.
    execs: Table<Exec>,
    assigned: Mutex<Option<(ContainerMounts, Assignment)>>,
    /// Locked during a change; none once the container is being removed.
    pub(super) plugged: tokio::sync::Mutex<Option<Plugged>>,
    /// Its limits. Locked while they or the device rules change.
    pub(super) applied: tokio::sync::Mutex<Applied>,
    reporter: Reporter,
    /// It was reported that the container ran out of memory.
    out_of_memory: AtomicBool,
}

/// A process to be run in the container: registered first, started later.
struct Exec {
    process: Arc<Process>,
    /// The OCI `process` object.
    spec: ProcessSpec,
}

/// The result of removing a container or process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// How its process had ended.
    pub exit: Exit,
}

impl Container {
    pub(super) fn new(
        id: String,
        bundle: PathBuf,
        sandbox: Arc<Sandbox>,
        init: Process,
        assigned: (ContainerMounts, Assignment),
        (applied, process, hooks): (Applied, ProcessSpec, Hooks),
        reporter: Reporter,
    ) -> Self {
        Self {
            id,
            bundle,
            init: Arc::new(init),
            sandbox,
            process,
            hooks,
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

    /// The init if `exec_id` is empty, otherwise the process with that id.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, TaskError> {
        if exec_id.is_empty() { Ok(self.init.clone()) } else { Ok(self.find(exec_id)?.process.clone()) }
    }

    fn find(&self, exec_id: &str) -> Result<Arc<Exec>, TaskError> {
        self.execs.get(exec_id).ok_or_else(|| self.no_process(exec_id))
    }

    fn no_process(&self, exec_id: &str) -> TaskError {
        TaskError::NoProcess { container_id: self.id.clone(), exec_id: exec_id.into() }
    }

    /// Registers a process to be run in the container; `spec` is the OCI `process` object as JSON.
    pub fn exec(&self, exec_id: &str, uris: Uris, terminal: bool, spec: &[u8]) -> Result<(), TaskError> {
        check_id(exec_id).map_err(|e| TaskError::Malformed { part: "exec", reason: e.to_string() })?;
        let mut spec: ProcessSpec = serde_json::from_slice(spec)
            .map_err(|e| TaskError::Malformed { part: "process of exec", reason: e.to_string() })?;
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

    /// Starts the init if `exec_id` is empty, otherwise the registered process with that id.
    pub async fn start(self: &Arc<Self>, exec_id: &str) -> Result<(), TaskError> {
        self.guest()?;
        let states = (ProcessState::Created, ProcessState::Running);
        if exec_id.is_empty() {
            let ask = async {
                let sandbox = self.guest()?;
                sandbox.bring_cpus_online().await?;
                Ok(sandbox.agent.start_container(&self.id).await?)
            };
            let started = self.init.lifecycle.change(states, ask, || self.report(Report::Started)).await;
            started.map_err(|why| self.init.unchanged("start", why))?;
            return self.run_hooks().await;
        }
        let exec = self.find(exec_id)?;
        let tell = || {
            self.report(Report::ExecStarted { exec_id: exec_id.into() });
            self.watch(exec.process.clone());
        };
        let started = exec.process.lifecycle.change(states, self.run(&exec), tell).await;
        started.map_err(|why| exec.process.unchanged("start", why))
    }

    /// Runs the hooks of a started container. One that fails ends the container (runtime.md#lifecycle).
    async fn run_hooks(&self) -> Result<(), TaskError> {
        let Err(failed) = self.hooks.started().await else { return Ok(()) };
        if let Err(error) = self.kill("", SIGKILL, true).await {
            tracing::warn!(container = self.id, error = %crate::failure::chain(&error), "kill");
        }
        Err(failed.into())
    }

    /// Has the agent run a registered process.
    async fn run(&self, exec: &Exec) -> Result<(), TaskError> {
        let process = &exec.process;
        let sandbox = self.guest()?;
        let (mut streams, stdio) =
            Streams::open(&process.uris, process.terminal, &process.id.exec_id).await?;
        let mut request = ExecProcessRequest::new();
        request.container_id.clone_from(&self.id);
        request.exec_id.clone_from(&process.id.exec_id);
        request.process = serde_json::to_vec(&exec.spec)
            .map_err(|e| TaskError::Malformed { part: "process of exec", reason: e.to_string() })?;
        request.stdio = Some(stdio).into();
        if let Some(size) = exec.spec.console_size() {
            request.rows = u32::try_from(size.height()).unwrap_or(0);
            request.columns = u32::try_from(size.width()).unwrap_or(0);
        }
        sandbox.agent.exec_process(request).await?;
        if let Err(error) = streams.connect(&sandbox.ports).await {
            self.undo_start(process, sandbox).await;
            return Err(error.into());
        }
        process.set_streams(streams);
        Ok(())
    }

    /// Ends a process that runs in the guest although its start failed on the host.
    async fn undo_start(&self, process: &Process, sandbox: &Sandbox) {
        let (agent, id) = (&sandbox.agent, &process.id);
        let undo = async {
            agent.signal(id, SIGKILL, false).await?;
            agent.wait_process(id).await?;
            agent.remove_process(id).await
        };
        match tokio::time::timeout(PATIENCE, undo).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(process = process.name(), error = %crate::failure::chain(&error), "undo");
            }
            Err(_) => tracing::warn!(process = process.name(), "a process does not end"),
        }
    }

    /// Waits, in a task, for the end of a process, and reports it once the output is delivered.
    pub(super) fn watch(self: &Arc<Self>, process: Arc<Process>) {
        let container = self.clone();
        tokio::spawn(async move {
            let (exit, out_of_memory, written) = container.end(&process).await;
            process.drain(written).await;
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

    /// Waits for the end of a process; returns how it ended, whether the container ran out of memory, and how much the
    /// process had written.
    async fn end(&self, process: &Process) -> (Exit, bool, Written) {
        let end = &self.sandbox.end;
        let answer = tokio::select! {
            answer = self.sandbox.agent.wait_process(&process.id) => answer,
            ended = end.wait() => return (self.sandbox_ended(&ended), false, Written::UNKNOWN),
        };
        match answer {
            // Clients compare the time with the host's clock, and the guest's may differ.
            Ok(answer) => {
                let written = Written { stdout: answer.stdout_bytes, stderr: answer.stderr_bytes };
                (Exit::now(answer.exit_status & 0xff), answer.out_of_memory, written)
            }
            // The connection broke because the guest ends.
            Err(error) if error.answer().is_none() => {
                (self.sandbox_ended(&end.wait().await), false, Written::UNKNOWN)
            }
            Err(error) => {
                // The container was removed meanwhile.
                tracing::debug!(process = process.name(), error = %crate::failure::chain(&error), "wait");
                (Exit::now(137), false, Written::UNKNOWN)
            }
        }
    }

    /// The exit of a process whose sandbox ended; the reason of an unexpected end is written into the bundle.
    fn sandbox_ended(&self, ended: &crate::sandbox::SandboxEnd) -> Exit {
        if ended.expected {
            return Exit::now(137);
        }
        let path = self.bundle.join(SANDBOX_ERROR);
        if let Err(error) = std::fs::write(&path, ended.report()) {
            tracing::warn!(path = %path.display(), %error, "cannot be written");
        }
        Exit::now(255)
    }

    /// Reports once that the container ran out of memory, and marks it in the bundle.
    pub fn out_of_memory(&self) {
        if !self.out_of_memory.swap(true, Ordering::AcqRel) {
            if let Err(error) = std::fs::write(self.bundle.join(OOM), "") {
                tracing::warn!(%error, "the bundle's oom file cannot be written");
            }
            self.report(Report::OutOfMemory);
        }
    }

    /// Sends a signal to the init or to another process; with `all`, to every process of the container.
    pub async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        let process = self.process(exec_id)?;
        process.alive("kill")?;
        let sandbox = self.guest()?;
        let call = sandbox.agent.signal(&process.id, signal, all);
        let answer = if signal == SIGKILL { sandbox.unless_dead(call).await } else { Ok(call.await) };
        // The machine was stopped, and every process with it.
        let Ok(answer) = answer else { return Ok(()) };
        answer.map_err(|error| match error.answer() {
            Some(ttrpc::Code::NOT_FOUND) => TaskError::Finished(process.name()),
            _ => error.into(),
        })
    }

    /// Removes the container, or forgets one of its processes, once. It must have ended, or not have been started.
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
        self.hooks.stopped().await;
        Ok(Removed { exit })
    }

    async fn forget(&self, exec_id: &str) -> Result<Removed, TaskError> {
        let exec = self.find(exec_id)?;
        let process = &exec.process;
        let work = async |state| {
            if state != ProcessState::Created
                && let Ok(sandbox) = self.guest()
                && let Ok(Err(error)) = sandbox.unless_dead(sandbox.agent.remove_process(&process.id)).await
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

    /// For a container that was removed in the guest, which kills its processes: returns once the end of each is
    /// reported, but waits no longer than `PATIENCE` for a guest that does not report it.
    async fn exec_ends(&self) {
        let execs = self.execs.all();
        let ends = futures::future::join_all(execs.iter().map(|exec| exec.process.lifecycle.over()));
        if tokio::time::timeout(PATIENCE, ends).await.is_err() {
            tracing::warn!(
                container = self.id,
                "the guest does not report the end of a process of a removed container"
            );
        }
    }

    async fn remove(&self, force: bool) {
        if let Ok(sandbox) = self.guest()
            && let Ok(Err(error)) = sandbox.unless_dead(sandbox.agent.remove_container(&self.id, force)).await
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

    /// Freezes every process of the container.
    pub async fn pause(&self) -> Result<(), TaskError> {
        let ask = async { Ok(self.guest()?.agent.pause_container(&self.id).await?) };
        let states = (ProcessState::Running, ProcessState::Paused);
        let paused = self.init.lifecycle.change(states, ask, || self.report(Report::Paused)).await;
        paused.map_err(|why| self.init.unchanged("pause", why))
    }

    /// Thaws every process of the container.
    pub async fn resume(&self) -> Result<(), TaskError> {
        let ask = async { Ok(self.guest()?.agent.resume_container(&self.id).await?) };
        let states = (ProcessState::Paused, ProcessState::Running);
        let resumed = self.init.lifecycle.change(states, ask, || self.report(Report::Resumed)).await;
        resumed.map_err(|why| self.init.unchanged("resume", why))
    }

    /// Changes limits and device rules; `resources` is the OCI object as JSON. The machine grows before the limits rise
    /// and shrinks after they fall; on an error everything is as it was.
    pub async fn update(&self, resources: Vec<u8>) -> Result<(), TaskError> {
        self.init.alive("update")?;
        let malformed =
            |e: serde_json::Error| TaskError::Malformed { part: "resources", reason: e.to_string() };
        let changes: LinuxResources = serde_json::from_slice(&resources).map_err(malformed)?;
        let sandbox = self.guest()?;
        let mut applied = self.applied.lock().await;
        let host_mib = crate::host::facts::memory_mib();
        let limits = |applied: Applied| Limits::default().changed(&applied.resources(), host_mib);
        let after = applied.with(&changes);
        let back = serde_json::to_vec(&applied.resources()).map_err(malformed)?;
        let limit = |new: bool| {
            sandbox.agent.update_container(&self.id, if new { resources.clone() } else { back.clone() })
        };
        sandbox.resize(limits(*applied), limits(after), limit).await?;
        *applied = after;
        Ok(())
    }

    /// Statistics of the container's cgroup.
    pub async fn stats(&self) -> Result<StatsContainerResponse, TaskError> {
        self.init.alive("stats")?;
        Ok(self.guest()?.agent.stats(&self.id).await?)
    }

    /// The guest's pids of the container's processes.
    pub async fn pids(&self) -> Result<Vec<u32>, TaskError> {
        self.init.alive("pids")?;
        Ok(self.guest()?.agent.list_processes(&self.id).await?)
    }

    /// Sets the size of a process's terminal.
    pub async fn resize(&self, exec_id: &str, rows: u32, columns: u32) -> Result<(), TaskError> {
        let process = self.process(exec_id)?;
        process.alive("resize")?;
        if !process.terminal {
            return Err(TaskError::Malformed {
                part: "resize",
                reason: format!("{} has no terminal", process.name()),
            });
        }
        Ok(self.guest()?.agent.resize_terminal(&process.id, (rows, columns)).await?)
    }

    /// Returns once the end of every process is reported, when the sandbox ends.
    pub async fn ended(&self) {
        self.exec_ends().await;
        self.init.wait().await;
    }

    pub(super) fn guest(&self) -> Result<&Sandbox, TaskError> {
        if self.sandbox.end.ended().is_some() { Err(TaskError::SandboxEnded) } else { Ok(&self.sandbox) }
    }
}
