//! Creating a container, in order: mount, locate devices, rewrite the spec, build. On an error nothing of it is left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kiai_protocol::agent::CreateContainerRequest;
use oci_spec::runtime::Spec;
use tokio::net::unix::pipe;
use tokio::sync::RwLock;

use super::assign::wait_for_all;
use super::devices::Devices;
use super::inventory::Inventory;
use super::io::{Streams, Terminal, pipes, start_terminal};
use super::localize::{Guest, LocalizeError, Localized, join_pids, localize};
use super::process::{BuiltProcess, Process};
use super::state::{Container, Phase};
use super::{RUN, check_id};
use crate::cgroup::Cgroup;
use crate::device::{self, LocateError};
use crate::fault::{Fault, Result};
use crate::oci::{OciError, Request};
use crate::sandbox::Sandbox;

/// How long a device may take to appear. The host has attached it before it calls.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates a container; its program waits to be started.
pub async fn create(sandbox: &Arc<Sandbox>, request: CreateContainerRequest) -> Result<Arc<Container>> {
    check_id("container", &request.container_id)?;
    let reservation = sandbox.reserve(&request.container_id)?;
    let spec = serde_json::from_slice(&request.spec)
        .map_err(|error| Fault::InvalidArgument(format!("OCI spec: {error}")))?;
    let streams = Streams::reserve(&request.stdio, &sandbox.streams)?;
    let storages = sandbox.storages.mount(&request.storages).await?;
    let cgroup = Cgroup::of(&request.container_id);
    let directory = Path::new(RUN).join(&request.container_id);
    match build(sandbox, &request, spec, streams, &cgroup, &directory, storages.clone()).await {
        Ok(container) => {
            reservation.fill(container.clone());
            Ok(container)
        }
        Err(fault) => {
            if let Err(error) = cgroup.remove().await {
                tracing::error!("undo container {}: {error:#}", request.container_id);
            }
            sandbox.storages.release(&storages).await;
            let _ = std::fs::remove_dir_all(&directory);
            Err(fault)
        }
    }
}

async fn build(
    sandbox: &Arc<Sandbox>,
    request: &CreateContainerRequest,
    spec: Spec,
    streams: Streams,
    cgroup: &Cgroup,
    directory: &Path,
    storages: Vec<PathBuf>,
) -> Result<Arc<Container>> {
    let id = &request.container_id;
    if !Path::new(&request.rootfs).is_dir() {
        return Err(Fault::InvalidArgument(format!("rootfs {:?} is not a directory", request.rootfs)));
    }
    let devices = wait_for_all(&sandbox.uevents, &request.devices, DEVICE_TIMEOUT).await?;
    let mut inventory = Inventory::new(&spec, devices)?;
    let mut spec = inventory.write_into(&spec)?;
    if request.all_guest_devices {
        spec = device::with_all(&spec).context("list the devices of the guest")?;
        inventory = inventory.with_guest_entries(&spec)?;
    }
    let guest = Guest { swap: Path::new("/proc/swaps").exists(), x32: crate::sys::has_x32() };
    let Localized { mut spec, sysctls, own_pids } =
        localize(spec, Path::new(&request.rootfs), cgroup.within_hierarchy(), guest)?;
    crate::guest::set_sysctls(sysctls.iter())?;
    if !own_pids {
        join_pids(&mut spec, sandbox.shared_pids().await?);
    }

    let process = spec.process().as_ref().ok_or(LocalizeError::Missing("process"))?;
    let (owner, terminal) = (process.user().uid(), process.terminal().unwrap_or(false));
    let state = directory.join("state");
    std::fs::create_dir_all(&state).with_context(|| format!("make {state:?}"))?;
    make_within(Path::new(&request.rootfs), process.cwd());
    let config = directory.join("config.json");
    std::fs::write(&config, serde_json::to_vec(&spec).context("encode the spec")?)
        .with_context(|| format!("write {config:?}"))?;

    // Before any process of the container runs.
    cgroup.make().with_context(|| format!("make the cgroup of container {id}"))?;
    let devices = Devices::enforce(inventory, cgroup)?;

    let build = Request::Create { id: id.clone(), bundle: directory.to_owned(), state, terminal };
    let (built, streams) = if terminal {
        (sandbox.helper.create(build, &[]).await?, Plumbing::Terminal(streams))
    } else {
        let (theirs, ours) = pipes(streams, owner)?;
        (sandbox.helper.create(build, &theirs).await?, Plumbing::Pipes(ours))
    };
    let started = built.started.context("a container is built with a start pipe")?;
    let started = pipe::Receiver::from_owned_fd(started).context("watch the start pipe")?;
    let fresh = streams.start(built.pid, built.exit, built.master, owner, request.rows, request.columns)?;

    let of_init = cgroup.clone();
    let init = Process::follow(fresh, cgroup.clone(), move || {
        // Without a pid namespace of its own, the container's other processes would outlive its init.
        if !own_pids && let Err(error) = of_init.kill() {
            tracing::error!("kill the processes that an init has left: {error}");
        }
    });
    Ok(Arc::new(Container {
        id: id.clone(),
        cgroup: cgroup.clone(),
        directory: directory.to_owned(),
        storages,
        init,
        phase: RwLock::new(Phase::Created(started)),
        execs: Default::default(),
        devices,
        oom_watch: sandbox.events.watch_out_of_memory(id.clone(), cgroup.clone()),
    }))
}

/// The streams of a process that is being built, with a terminal or with pipes.
pub(super) enum Plumbing {
    Terminal(Streams),
    Pipes(super::io::Pipes),
}

impl Plumbing {
    /// Starts to copy the streams of a process that has just been built.
    pub(super) fn start(
        self,
        pid: i32,
        exit: crate::reaper::ExitWatch,
        master: Option<std::os::fd::OwnedFd>,
        owner: u32,
        rows: u32,
        columns: u32,
    ) -> anyhow::Result<BuiltProcess> {
        let (terminal, (copying, whole)) = match self {
            Self::Pipes(pipes) => (None, pipes.start(&exit)),
            Self::Terminal(streams) => {
                let master = master.context("a process with a terminal is built with its master side")?;
                let terminal = Terminal::new(master, owner)?;
                terminal.resize(rows, columns)?;
                let copying = start_terminal(streams, &terminal, &exit);
                (Some(terminal), copying)
            }
        };
        Ok(BuiltProcess { pid, exit, terminal, copying, whole })
    }
}

/// Makes the working directory in the root file system if it does not exist, as other runtimes do.
///
/// The path is resolved within the root, so no link of an image leads out of it. A failure is ignored: the directory
/// may be in a mount, and otherwise libcontainer reports it.
fn make_within(root: &Path, wanted: &Path) {
    use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(root, flags, Mode::empty()) else { return };
    let mut parent = PathBuf::from("/");
    for part in wanted.components().skip(1) {
        let next = parent.join(part);
        if openat2(&root, &next, flags, Mode::empty(), ResolveFlags::IN_ROOT).is_err() {
            let Ok(directory) = openat2(&root, &parent, flags, Mode::empty(), ResolveFlags::IN_ROOT) else {
                return;
            };
            let name: &Path = part.as_ref();
            if mkdirat(&directory, name, Mode::from_raw_mode(0o755)).is_err() {
                return;
            }
        }
        parent = next;
    }
}

impl From<OciError> for Fault {
    fn from(error: OciError) -> Self {
        match error {
            // libcontainer's message contains the payload's: the program cannot be executed.
            OciError::Refused(reason) if reason.contains("exec: \"") => {
                Self::InvalidArgument(reason[reason.find("exec: \"").unwrap_or(0)..].to_owned())
            }
            OciError::FailedPrecondition(reason) => Self::FailedPrecondition(reason),
            error => Self::Internal(anyhow::Error::new(error)),
        }
    }
}

impl From<LocalizeError> for Fault {
    fn from(error: LocalizeError) -> Self {
        match error {
            LocalizeError::Unsupported(_) => Self::Unimplemented(error.to_string()),
            _ => Self::InvalidArgument(error.to_string()),
        }
    }
}

impl From<LocateError> for Fault {
    fn from(error: LocateError) -> Self {
        match &error {
            LocateError::Absent(..) => Self::NotFound(error.to_string()),
            LocateError::NoDriver(_) => Self::FailedPrecondition(error.to_string()),
            LocateError::Wait(..) | LocateError::Vfio(..) => Self::Internal(anyhow::Error::new(error)),
            _ => Self::InvalidArgument(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_directory_is_made_inside_the_root_whatever_the_links() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        std::fs::create_dir_all(root.join("srv")).unwrap();
        std::os::unix::fs::symlink("../../..", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/srv", root.join("data")).unwrap();
        make_within(&root, Path::new("/data/a/b"));
        make_within(&root, Path::new("/out/escaped"));
        make_within(&root, Path::new("/"));
        assert!(root.join("srv/a/b").is_dir());
        assert!(root.join("escaped").is_dir());
        assert!(!top.path().join("escaped").exists());
    }
}
