//! A pod's sandbox that is asked for before any container (containerd's Sandbox service), and its states.
//!
//! ```text
//!   Created ──start──► Running ──stop, or the guest ends──► Ended(Exit)
//!      └──────────────────────stop───────────────────────►
//! ```
//! Containers come and go meanwhile by the Task service; the shim ends with `shut_down_sandbox`.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::CGROUP_FILE;
use super::pod::Pod;
use super::pod_config;
use super::wire::PodSandboxConfig;
use crate::agent::message::StatsContainerResponse;
use crate::config::Config;
use crate::container::Exit;
use crate::failure::RpcError;
use crate::failure::RpcResult;
use crate::failure::chain;
use crate::host::cgroup;
use crate::host::facts;
use crate::plan::Annotations;
use crate::plan::PlanError;
use crate::plan::SandboxPlan;
use crate::plan::plan_sandbox;

/// Directory in the bundle with the pod's files that containers see.
const FILES: &str = "pod";

/// Exit status of a sandbox whose guest ended unexpectedly.
const FAILED: u32 = 255;

/// The state of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SandboxState {
    Created,
    /// It was started at that time.
    Running(Exit),
    /// It ended, and was started at the second time if it was.
    Ended(Exit, Option<Exit>),
}

/// A sandbox that was created by request.
pub(super) struct PodSandbox {
    /// Taken by the start.
    plan: Mutex<Option<SandboxPlan>>,
    pub(super) files: PathBuf,
    state: watch::Sender<SandboxState>,
}

impl PodSandbox {
    fn new(plan: SandboxPlan, files: PathBuf) -> Self {
        let state = watch::channel(SandboxState::Created).0;
        Self { plan: Mutex::new(Some(plan)), files, state }
    }

    pub(super) fn state(&self) -> SandboxState {
        *self.state.borrow()
    }

    /// The first end counts; returns whether this was it.
    pub(super) fn end(&self, status: u32) -> bool {
        self.state.send_if_modified(|state| {
            let started = match *state {
                SandboxState::Created => None,
                SandboxState::Running(started) => Some(started),
                SandboxState::Ended(..) => return false,
            };
            *state = SandboxState::Ended(Exit::now(status), started);
            true
        })
    }

    /// Makes a created sandbox a running one; false if it was stopped meanwhile.
    fn run(&self) -> bool {
        self.state.send_if_modified(|state| {
            let created = *state == SandboxState::Created;
            if created {
                *state = SandboxState::Running(Exit::now(0));
            }
            created
        })
    }

    /// Waits for the end.
    pub(super) async fn wait(&self) -> Exit {
        let mut state = self.state.subscribe();
        loop {
            if let SandboxState::Ended(exit, _) = *state.borrow_and_update() {
                return exit;
            }
            // `self` holds the sender, so the channel outlives this wait.
            let _ = state.changed().await;
        }
    }
}

impl Pod {
    /// The sandbox with this id.
    pub(super) fn own_sandbox(&self, id: &str) -> RpcResult<Arc<PodSandbox>> {
        let own = self.own.get().filter(|_| self.id == id);
        own.cloned().ok_or_else(|| RpcError::not_found(format!("sandbox {id}: not found")))
    }

    /// Creates the sandbox: plans it, joins its cgroup, and writes the files of its containers.
    pub(super) fn create_sandbox(
        &self,
        id: &str,
        config: Option<&PodSandboxConfig>,
        network: &str,
    ) -> RpcResult<()> {
        // Locked until the sandbox is there, so that a second request finds it.
        let mut joined = self.cgroup.lock();
        if id != self.id {
            return Err(RpcError::invalid(format!("sandbox {id}: this shim is that of {}", self.id)));
        }
        let exists = || RpcError::already_exists(format!("sandbox {id}: already exists"));
        if self.own.get().is_some() {
            return Err(exists());
        }
        let plan = self.plan_own(id, config, network)?;
        let dns = config.map(|config| config.dns_config.get_or_default().clone()).unwrap_or_default();
        let files = self.bundle.join(FILES);
        pod_config::write_files(&files, &plan.hostname, &dns)?;
        if let Some(path) = plan.cgroup.as_ref().filter(|_| joined.is_none()) {
            *joined = Some(self.join_cgroup(path)?);
        }
        self.own.set(Arc::new(PodSandbox::new(plan, files))).map_err(|_| exists())
    }

    fn plan_own(&self, id: &str, config: Option<&PodSandboxConfig>, network: &str) -> RpcResult<SandboxPlan> {
        let spec = self.sandbox_spec(id, config, network)?;
        let settings =
            Config::load_class(self.config.as_deref()).map_err(|e| RpcError::precondition(chain(&e)))?;
        let all = spec.annotations().clone().unwrap_or_default();
        let refuse = |e: PlanError| RpcError::invalid(format!("sandbox {id}: {e}"));
        let annotations = Annotations::parse(&all, &settings.pod_annotations).map_err(refuse)?;
        let facts = facts::gather(&spec);
        let plan = plan_sandbox(id, &spec, &annotations, &settings, &facts).map_err(refuse)?;
        Ok(self.completed(plan, &settings))
    }

    /// The spec of the sandbox: made of the CRI's configuration, or that of the bundle, which other clients write.
    fn sandbox_spec(&self, id: &str, config: Option<&PodSandboxConfig>, network: &str) -> RpcResult<Spec> {
        let path = self.bundle.join("config.json");
        if config.is_some() || !path.exists() {
            return pod_config::spec(id, config.unwrap_or(&PodSandboxConfig::default()), network);
        }
        let invalid = |e| RpcError::invalid(format!("{}: {}", path.display(), chain(&e)));
        pod_config::of_bundle(id, Spec::load(&path).map_err(invalid)?)
    }

    /// Joins the sandbox's cgroup, which a later `delete` finds by a file of the bundle if this process is killed.
    fn join_cgroup(&self, path: &Path) -> RpcResult<cgroup::Joined> {
        let file = self.bundle.join(CGROUP_FILE);
        std::fs::write(&file, path.as_os_str().as_encoded_bytes())
            .map_err(|e| RpcError::host(file.display(), &e))?;
        Ok(cgroup::join(&cgroup::relative_path(path)))
    }

    /// Boots the sandbox. Returns when it was started.
    pub(super) async fn start_sandbox(self: &Arc<Self>, id: &str) -> RpcResult<Exit> {
        let own = self.own_sandbox(id)?;
        let Some(plan) = own.plan.lock().take() else {
            return Err(RpcError::precondition(format!("sandbox {id}: was started or stopped before")));
        };
        let booted = async {
            let shared = self.shared()?;
            self.sandbox.get_or_try_init(|| self.boot(plan, &shared)).await
        };
        let sandbox = match booted.await {
            Ok(sandbox) => sandbox.clone(),
            Err(error) => {
                own.end(FAILED);
                return Err(error.into());
            }
        };
        if !own.run() {
            sandbox.shut_down().await;
            return Err(RpcError::precondition(format!("sandbox {id}: was stopped while it started")));
        }
        let watched = own.clone();
        tokio::spawn(async move {
            let ended = sandbox.end.wait().await;
            watched.end(if ended.expected { 0 } else { FAILED });
        });
        match own.state() {
            SandboxState::Running(started) | SandboxState::Ended(_, Some(started)) => Ok(started),
            SandboxState::Created | SandboxState::Ended(_, None) => Ok(Exit::now(0)),
        }
    }

    /// Stops the sandbox and with it every container; returns once their ends are reported. Stopping it again is no
    /// error.
    pub(super) async fn stop_sandbox(&self, id: &str) -> RpcResult<()> {
        let own = self.own_sandbox(id)?;
        own.plan.lock().take();
        self.end_containers().await;
        own.end(0);
        Ok(())
    }

    /// Ends this process, whether the sandbox was created or not.
    pub(super) fn shut_down_sandbox(&self, id: &str) -> RpcResult<()> {
        if id != self.id {
            return Err(RpcError::not_found(format!("sandbox {id}: not found")));
        }
        self.shut_down(true);
        Ok(())
    }

    /// Whether the sandbox runs and its agent answers.
    pub(super) async fn ping_sandbox(&self, id: &str) -> RpcResult<()> {
        let own = self.own_sandbox(id)?;
        match (own.state(), self.sandbox.get()) {
            (SandboxState::Running(_), Some(sandbox)) if sandbox.is_alive().await => Ok(()),
            (SandboxState::Running(_), _) => {
                Err(RpcError::internal(format!("sandbox {id}: the guest gives no sign of life")))
            }
            _ => Err(RpcError::precondition(format!("sandbox {id}: does not run"))),
        }
    }

    /// Statistics of all containers together.
    pub(super) async fn sandbox_stats(&self, id: &str) -> RpcResult<StatsContainerResponse> {
        self.own_sandbox(id)?;
        let mut total = StatsContainerResponse::new();
        for container in self.containers() {
            // A container that has ended meanwhile uses nothing.
            if let Ok(stats) = container.stats().await {
                add(&mut total, stats);
            }
        }
        Ok(total)
    }
}

/// Adds a container's statistics. Limits are those of single containers and are left out; the interfaces are the pod's.
fn add(total: &mut StatsContainerResponse, one: StatsContainerResponse) {
    total.cpu_usage_us += one.cpu_usage_us;
    total.cpu_user_us += one.cpu_user_us;
    total.cpu_system_us += one.cpu_system_us;
    total.cpu_periods += one.cpu_periods;
    total.cpu_throttled_periods += one.cpu_throttled_periods;
    total.cpu_throttled_us += one.cpu_throttled_us;
    total.memory_usage += one.memory_usage;
    total.memory_anon += one.memory_anon;
    total.memory_file += one.memory_file;
    total.memory_inactive_file += one.memory_inactive_file;
    total.memory_kernel += one.memory_kernel;
    total.memory_page_faults += one.memory_page_faults;
    total.memory_major_page_faults += one.memory_major_page_faults;
    total.swap_usage += one.swap_usage;
    total.pids_current += one.pids_current;
    total.oom_kills += one.oom_kills;
    for io in one.io {
        let same = total.io.iter_mut().find(|had| (had.major, had.minor) == (io.major, io.minor));
        match same {
            Some(had) => {
                had.read_bytes += io.read_bytes;
                had.write_bytes += io.write_bytes;
                had.read_operations += io.read_operations;
                had.write_operations += io.write_operations;
            }
            None => total.io.push(io),
        }
    }
    total.network = one.network;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::message::IoStats;
    use crate::shim::pod::PodOptions;

    #[test]
    fn a_pods_statistics_are_the_sum_of_its_containers() {
        let one = || {
            let mut stats = StatsContainerResponse::new();
            (stats.cpu_usage_us, stats.memory_usage, stats.memory_limit) = (5, 7, 9);
            stats.io =
                [1, 2].map(|minor| IoStats { major: 254, minor, read_bytes: 3, ..Default::default() }).into();
            stats
        };
        let mut total = StatsContainerResponse::new();
        add(&mut total, one());
        add(&mut total, one());
        assert_eq!((total.cpu_usage_us, total.memory_usage, total.memory_limit), (10, 14, 0));
        let io: Vec<_> = total.io.iter().map(|io| (io.minor, io.read_bytes)).collect();
        assert_eq!(io, [(1, 6), (2, 6)]);
    }

    fn pod() -> (tempfile::TempDir, Arc<Pod>) {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().into();
        let pod = Pod::new(PodOptions { id: "pod1".into(), bundle, ..PodOptions::default() });
        (folder, pod)
    }

    #[tokio::test]
    async fn requests_for_another_sandbox_are_refused_by_name() {
        let (_folder, pod) = pod();
        let error = pod.create_sandbox("pod2", None, "").unwrap_err().to_string();
        assert!(error.contains("pod2") && error.contains("pod1"), "{error}");
        for error in [
            pod.start_sandbox("pod1").await.map(drop).unwrap_err(),
            pod.stop_sandbox("pod1").await.unwrap_err(),
            pod.shut_down_sandbox("pod2").unwrap_err(),
        ] {
            assert_eq!(error.code(), containerd_shim_protos::ttrpc::Code::NOT_FOUND, "{error}");
        }
    }

    #[tokio::test]
    async fn a_sandbox_keeps_its_shim_until_it_is_shut_down() {
        let (folder, pod) = pod();
        pod.create_sandbox("pod1", None, "").unwrap();
        assert!(pod.create_sandbox("pod1", None, "").is_err());
        // The Task service's Shutdown after a container.
        pod.shut_down(false);
        assert!(!folder.path().join(super::super::ENDING_FILE).exists());
        pod.shut_down_sandbox("pod1").unwrap();
        pod.shut_down_sandbox("pod1").unwrap();
        pod.stopped().await;
    }

    #[tokio::test]
    async fn a_stopped_sandbox_has_ended_and_does_not_start() {
        let (_folder, pod) = pod();
        pod.create_sandbox("pod1", None, "").unwrap();
        let own = pod.own_sandbox("pod1").unwrap();
        assert_eq!(own.state(), SandboxState::Created);
        pod.stop_sandbox("pod1").await.unwrap();
        pod.stop_sandbox("pod1").await.unwrap();
        assert_eq!(own.wait().await.status, 0);
        assert!(pod.start_sandbox("pod1").await.is_err());
        assert!(pod.ping_sandbox("pod1").await.is_err());
        assert!(!own.run() && !own.end(FAILED), "the first end counts");
    }
}
