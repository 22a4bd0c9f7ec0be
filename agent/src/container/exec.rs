//! Running another process in a running container.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use kiai_protocol::agent::ExecProcessRequest;

use super::check_id;
use super::create::Plumbing;
use super::io::{Streams, pipes};
use super::localize::localize_process;
use super::process::Process;
use super::state::{Container, Phase};
use crate::device::translate_process;
use crate::fault::{Fault, Result};
use crate::oci::Request;
use crate::sandbox::Sandbox;

/// Starts a process in a container; it runs when this returns.
pub async fn exec(
    sandbox: &Arc<Sandbox>,
    container: &Container,
    request: ExecProcessRequest,
) -> Result<Arc<Process>> {
    check_id("process", &request.exec_id)?;
    // Held until the process runs, so that the container is neither paused nor removed meanwhile.
    let phase = container.phase.read().await;
    if !matches!(*phase, Phase::Running) || container.init.has_exited() {
        return Err(container.wrong_phase("entered", &phase));
    }
    let reservation = ExecReservation::reserve(container, &request.exec_id)?;
    let scratch = Scratch::make(container)?;
    let process = build(sandbox, container, &request, &scratch.0).await?;
    reservation.fill(process.clone());
    Ok(process)
}

async fn build(
    sandbox: &Arc<Sandbox>,
    container: &Container,
    request: &ExecProcessRequest,
    scratch: &Path,
) -> Result<Arc<Process>> {
    let mut process: oci_spec::runtime::Process = serde_json::from_slice(&request.process)
        .map_err(|error| Fault::InvalidArgument(format!("OCI process: {error}")))?;
    localize_process(&mut process);
    translate_process(&mut process, &container.devices.pci_addresses());
    let (owner, terminal) = (process.user().uid(), process.terminal().unwrap_or(false));
    let file = scratch.join("process.json");
    std::fs::write(&file, serde_json::to_vec(&process).context("encode the process")?)
        .with_context(|| format!("write {file:?}"))?;
    let streams = Streams::reserve(&request.stdio, &sandbox.streams)?;

    let build =
        Request::Exec { id: container.id.clone(), state: scratch.to_owned(), process: file, terminal };
    let (built, streams) = if terminal {
        (sandbox.helper.exec(build, &[]).await?, Plumbing::Terminal(streams))
    } else {
        let (theirs, ours) = pipes(streams, owner)?;
        (sandbox.helper.exec(build, &theirs).await?, Plumbing::Pipes(ours))
    };
    let fresh = streams.start(built.pid, built.exit, built.master, owner, request.rows, request.columns)?;
    Ok(Process::follow(fresh, container.cgroup.clone(), || {}))
}

/// A state directory for one helper, because libcontainer leaves sockets behind in its state directory.
struct Scratch(PathBuf);

impl Scratch {
    fn make(container: &Container) -> anyhow::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let scratch = Self(container.directory.join(format!("exec-{number}")));
        let state = scratch.0.join(&container.id);
        std::fs::create_dir_all(&state).with_context(|| format!("make {state:?}"))?;
        let original = container.state().join(&container.id).join("state.json");
        std::fs::copy(&original, state.join("state.json")).with_context(|| format!("copy {original:?}"))?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!("remove {:?}: {error}", self.0);
        }
    }
}

/// A reserved exec id. Dropping it frees the id unless a process was filled in.
struct ExecReservation<'a> {
    container: &'a Container,
    exec_id: &'a str,
}

impl<'a> ExecReservation<'a> {
    fn reserve(container: &'a Container, exec_id: &'a str) -> Result<Self> {
        let mut execs = container.execs.lock();
        if execs.contains_key(exec_id) {
            return Err(Fault::AlreadyExists(format!(
                "container {} has a process {exec_id:?} already",
                container.id
            )));
        }
        execs.insert(exec_id.to_owned(), None);
        Ok(Self { container, exec_id })
    }

    fn fill(self, process: Arc<Process>) {
        self.container.execs.lock().insert(self.exec_id.to_owned(), Some(process));
    }
}

impl Drop for ExecReservation<'_> {
    fn drop(&mut self) {
        let mut execs = self.container.execs.lock();
        if execs.get(self.exec_id).is_some_and(Option::is_none) {
            execs.remove(self.exec_id);
        }
    }
}
