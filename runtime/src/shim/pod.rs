//! The pod of a shim: one sandbox and its containers.
//!
//! The sandbox boots for the first container. Knows no message of containerd.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;

use oci_spec::runtime::Spec;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::sync::watch;

use super::ENDING_FILE;
use super::afterwards::Afterwards;
use super::events::Events;
use super::pod_config;
use super::pod_sandbox::PodSandbox;
use crate::agent::AgentError;
use crate::agent::message::MemoryFreed;
use crate::agent::message::next_event_response::Event;
use crate::cdi;
use crate::config::Config;
use crate::config::TEMPLATES;
use crate::config::state_root;
use crate::container;
use crate::container::Container;
use crate::container::CreateError;
use crate::container::CreateOptions;
use crate::container::Hooks;
use crate::container::NoEntry;
use crate::container::Process;
use crate::container::Removed;
use crate::container::Reporter;
use crate::container::Table;
use crate::container::TaskError;
use crate::failure::chain;
use crate::host::MountError;
use crate::host::cgroup;
use crate::host::facts;
use crate::plan::Annotations;
use crate::plan::HostFacts;
use crate::plan::Role;
use crate::plan::SandboxPlan;
use crate::plan::check_id;
use crate::plan::plan_container;
use crate::plan::plan_sandbox;
use crate::sandbox;
use crate::sandbox::Sandbox;
use crate::sandbox::SharedDirectory;

/// The pod of this process.
pub(super) struct Pod {
    pub(super) events: Events,
    /// The id with which the shim was started: that of its sandbox.
    pub(super) id: String,
    /// containerd's namespace, or the CLI's.
    pub(super) namespace: String,
    /// The first container's bundle, in which the shared directory is.
    pub(super) bundle: PathBuf,
    /// The configuration of its runtime class.
    pub(super) config: Option<PathBuf>,
    own_network: bool,
    /// The cgroup that this process has joined.
    pub(super) cgroup: Mutex<Option<cgroup::Joined>>,
    /// The sandbox, if it was created by the Sandbox service.
    pub(super) own: OnceLock<Arc<PodSandbox>>,
    shared: Mutex<Option<Arc<SharedDirectory>>>,
    /// Booted by the first create, for which the others wait, or by the Sandbox service.
    pub(super) sandbox: OnceCell<Arc<Sandbox>>,
    /// Closed once the process is to end.
    containers: Table<Container>,
    /// Taken when the first container is created.
    afterwards: Mutex<Option<Afterwards>>,
    stop: watch::Sender<bool>,
}

/// The options of a new pod.
#[derive(Default)]
pub(super) struct PodOptions {
    /// The id with which the shim was started.
    pub(super) id: String,
    /// containerd's namespace, or the CLI's.
    pub(super) namespace: String,
    pub(super) bundle: PathBuf,
    /// The configuration of its runtime class.
    pub(super) config: Option<PathBuf>,
    /// This process is in a network namespace that was made for the pod.
    pub(super) own_network: bool,
    pub(super) afterwards: Option<Afterwards>,
}

/// Path of the network namespace that was made for the pod.
const OWN_NETWORK: &str = "/proc/self/ns/net";

/// File in the bundle for the guest's console, if the configuration asks for it.
const CONSOLE_LOG: &str = "console.log";

impl Pod {
    pub(super) fn new(options: PodOptions) -> Arc<Self> {
        let PodOptions { id, namespace, bundle, config, own_network, afterwards } = options;
        Arc::new(Self {
            events: Events::new(&namespace),
            id,
            namespace,
            bundle,
            config,
            own_network,
            cgroup: Mutex::default(),
            own: OnceLock::new(),
            shared: Mutex::default(),
            sandbox: OnceCell::new(),
            containers: Table::default(),
            afterwards: Mutex::new(afterwards),
            stop: watch::channel(false).0,
        })
    }

    /// Returns when the process is to end.
    pub(super) async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // `self` holds the sender.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    pub(super) fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        self.containers.get(id).ok_or_else(|| TaskError::NoContainer(id.into()))
    }

    pub(super) fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, TaskError> {
        self.container(id)?.process(exec_id)
    }

    /// Creates a container, and for the first one the sandbox. On an error nothing of the container is left.
    pub(super) async fn create(
        self: &Arc<Self>,
        options: CreateOptions,
        reporter: Reporter,
    ) -> Result<(), CreateError> {
        let id = options.id.clone();
        check_id(&id)?;
        let reservation = self.containers.reserve(&id).map_err(|why| match why {
            NoEntry::Taken => TaskError::Exists(format!("container {id}")),
            NoEntry::Closed => TaskError::ShuttingDown(id),
        })?;
        let container = self.make(options, reporter).await?;
        if let Some(afterwards) = self.afterwards.lock().take() {
            let init = container.init.clone();
            tokio::spawn(async move {
                init.wait().await;
                afterwards.run();
            });
        }
        reservation.fill(container);
        Ok(())
    }

    async fn make(
        self: &Arc<Self>,
        mut options: CreateOptions,
        reporter: Reporter,
    ) -> Result<Arc<Container>, CreateError> {
        let path = options.bundle.join("config.json");
        let mut spec = Spec::load(&path).map_err(|source| CreateError::Spec { path, source })?;
        if let Some(own) = self.own.get() {
            pod_config::add_mounts(&mut spec, &own.files);
        }
        let spec = cdi::apply_annotations(spec, cdi::Registry::read)?;
        let config = Config::load_class(self.config.as_deref())?;
        let all = spec.annotations().clone().unwrap_or_default();
        let annotations = Annotations::parse(&all, &config.pod_annotations)?;
        let facts = facts::gather(&spec);
        let plan = plan_container(&options.id, &spec, &annotations, &facts)?;
        let hooks = Hooks {
            all: plan.hooks.clone(),
            version: spec.version().clone(),
            id: options.id.clone(),
            bundle: options.bundle.clone(),
            annotations: all,
        };
        options.hooks = hooks.clone();
        let create = async {
            hooks.create().await?;
            let shared = self.shared()?;
            let id = options.id.clone();
            let sandbox = self.sandbox(&id, (&spec, &annotations, &facts), &config, &shared);
            container::create(options, plan, shared.path(), sandbox, reporter).await
        };
        let created = create.await;
        if created.is_err() {
            hooks.stopped().await;
        }
        created
    }

    pub(super) fn shared(&self) -> Result<Arc<SharedDirectory>, MountError> {
        let mut shared = self.shared.lock();
        match &*shared {
            Some(shared) => Ok(shared.clone()),
            None => Ok(shared.insert(Arc::new(SharedDirectory::create(&self.bundle)?)).clone()),
        }
    }

    /// The sandbox, which is booted for the first container by its spec.
    async fn sandbox(
        self: &Arc<Self>,
        id: &str,
        (spec, annotations, facts): (&Spec, &Annotations, &HostFacts),
        config: &Config,
        shared: &SharedDirectory,
    ) -> Result<Arc<Sandbox>, CreateError> {
        let boot = async {
            if let Role::Container { sandbox_id } = &annotations.role {
                return Err(CreateError::NoSandbox(sandbox_id.clone()));
            }
            let plan = plan_sandbox(id, spec, annotations, config, facts)?;
            self.boot(self.completed(plan, config), shared).await
        };
        let sandbox = self.sandbox.get_or_try_init(|| boot).await?;
        if sandbox.end.ended().is_some() {
            return Err(TaskError::SandboxEnded.into());
        }
        Ok(sandbox.clone())
    }

    /// The plan with what belongs to this process: a file for the guest's console, if the configuration asks for it,
    /// and the network namespace that was made for the pod.
    pub(super) fn completed(&self, mut plan: SandboxPlan, config: &Config) -> SandboxPlan {
        if self.own_network {
            plan.network = Some(OWN_NETWORK.into());
        }
        if config.console_log && plan.console.is_none() {
            plan.console = Some(self.bundle.join(CONSOLE_LOG));
        }
        plan.templates = config.templates.then(|| state_root().join(TEMPLATES));
        plan
    }

    pub(super) async fn boot(
        self: &Arc<Self>,
        plan: SandboxPlan,
        shared: &SharedDirectory,
    ) -> Result<Arc<Sandbox>, CreateError> {
        let sandbox = Arc::new(sandbox::boot(plan, shared.view().into()).await?);
        self.attend(&sandbox);
        Ok(sandbox)
    }

    pub(super) fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.all()
    }

    /// Starts to handle the guest's events, that a container ran out of memory or memory was freed, and its end.
    fn attend(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let (pod, agent, reclaiming) = (self.clone(), sandbox.agent.clone(), sandbox.clone());
        let (latest, freed) = watch::channel(MemoryFreed::default());
        tokio::spawn(async move { reclaiming.reclaim_memory(freed).await });
        tokio::spawn(async move {
            loop {
                match agent.next_event().await {
                    Ok(Some(Event::OutOfMemory(id))) => {
                        if let Ok(container) = pod.container(&id) {
                            container.out_of_memory();
                        }
                    }
                    Ok(Some(Event::MemoryFreed(freed))) => {
                        latest.send_replace(freed);
                    }
                    Ok(_) => {
                        tracing::warn!("the guest sent an event of a kind that this runtime does not know");
                        return;
                    }
                    // The guest has ended, which is reported elsewhere.
                    Err(AgentError::Lost { .. }) => return,
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "wait for an event of the guest");
                        return;
                    }
                }
            }
        });
        let end = sandbox.end.clone();
        tokio::spawn(async move {
            let ended = end.wait().await;
            if !ended.expected {
                tracing::error!("{}", ended.report());
            }
        });
    }

    /// Removes a container, or forgets one of its processes.
    pub(super) async fn delete(&self, id: &str, exec_id: &str) -> Result<Removed, TaskError> {
        let container = self.container(id)?;
        let removed = container.delete(exec_id).await?;
        if exec_id.is_empty() {
            self.containers.remove(id, &container);
        }
        Ok(removed)
    }

    /// Ends this process if no container is left; with `now`, in any case. Clients ask for it after each container of a
    /// pod, and again. A sandbox of the Sandbox service outlives its containers.
    pub(super) fn shut_down(&self, now: bool) {
        if !now && self.own.get().is_some() {
            return;
        }
        if now {
            self.containers.close();
        }
        if now || self.containers.close_if_empty() {
            // Before the answer, after which containerd runs `delete`.
            self.mark_ending();
            self.stop.send_replace(true);
        }
    }

    fn mark_ending(&self) {
        let path = self.bundle.join(ENDING_FILE);
        if let Err(error) = std::fs::write(&path, "") {
            tracing::warn!(path = %path.display(), %error, "cannot be written");
        }
    }

    /// Shuts the sandbox down, which ends its processes; returns once their ends are reported.
    pub(super) async fn end(&self) {
        self.mark_ending();
        self.containers.close();
        self.end_containers().await;
        if let Some(own) = self.own.get() {
            own.end(0);
        }
    }

    /// Shuts the sandbox down, if it was booted; returns once the ends of its processes are reported.
    pub(super) async fn end_containers(&self) {
        let Some(sandbox) = self.sandbox.get() else { return };
        sandbox.shut_down().await;
        for container in self.containers.all() {
            container.ended().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_create_after_the_end_was_decided_is_refused_by_name() {
        for now in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let pod = Pod::new(PodOptions { bundle: folder.path().into(), ..PodOptions::default() });
            let create = async |id: &str| {
                let bundle = folder.path().join("none");
                let options = CreateOptions { id: id.into(), bundle, ..CreateOptions::default() };
                pod.create(options, Arc::new(|_| {})).await.unwrap_err()
            };
            // A container that could not be created keeps no pod alive.
            assert!(matches!(create("early").await, CreateError::Spec { .. }));
            assert!(!folder.path().join(ENDING_FILE).exists());
            for _ in 0..3 {
                pod.shut_down(now);
            }
            assert!(folder.path().join(ENDING_FILE).exists(), "a `delete` waits for the end");
            pod.stopped().await;
            let error = create("late").await;
            assert_eq!(error.to_string(), "container late: the pod is shutting down");
        }
    }
}
