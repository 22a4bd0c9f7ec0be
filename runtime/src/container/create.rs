//! Creating a container, in order: mount, assign devices, ask the agent.

use std::future::Future;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use kiai_protocol::agent::CreateContainerRequest;

use super::Container;
use super::HookError;
use super::Hooks;
use super::Process;
use super::Report;
use super::Reporter;
use super::TaskError;
use super::devices;
use super::io::StdioError;
use super::io::Streams;
use super::io::Uris;
use super::limits::Applied;
use super::mounts::ContainerMounts;
use crate::agent::AgentError;
use crate::agent::message;
use crate::cdi::CdiError;
use crate::host::MountError;
use crate::host::rootfs::FsMount;
use crate::plan::ContainerPlan;
use crate::plan::DeviceMap;
use crate::plan::PlanError;
use crate::plan::container_directory;
use crate::sandbox::AssignError;
use crate::sandbox::HostDevices;
use crate::sandbox::Sandbox;
use crate::sandbox::SandboxBootError;

/// A client's request for a new container.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// The container's id, which has been checked.
    pub id: String,
    /// The directory of its bundle.
    pub bundle: PathBuf,
    /// Mounts that make up its root file system; without any, `<bundle>/rootfs` is bound.
    pub rootfs: Vec<FsMount>,
    /// The URIs of its standard streams.
    pub uris: Uris,
    /// Its process has a terminal.
    pub terminal: bool,
    /// Its hooks that run on the host.
    pub hooks: Hooks,
}

/// Why a container was not created; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The bundle's config.json cannot be read.
    #[error("read OCI spec {path}")]
    Spec {
        /// The file's path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: oci_spec::OciSpecError,
    },
    /// The runtime's configuration is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A CDI device cannot be provided.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// The spec asks for something that cannot be provided.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The sandbox that the container belongs to does not run in this process.
    #[error("sandbox {0} is not running")]
    NoSandbox(String),
    /// The sandbox did not boot.
    #[error(transparent)]
    Boot(#[from] SandboxBootError),
    /// The root file system or a volume cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A device cannot be assigned.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// A standard stream cannot be opened.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A prestart or createRuntime hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The agent failed to create the container.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The id is taken, or the pod is shutting down.
    #[error(transparent)]
    Task(#[from] TaskError),
}

/// Creates a container in a sandbox that may still be booting: meanwhile its root file system and volumes are mounted
/// below `shared`.
pub async fn create(
    options: CreateOptions,
    plan: ContainerPlan,
    shared: &Path,
    sandbox: impl Future<Output = Result<Arc<Sandbox>, CreateError>>,
    reporter: Reporter,
) -> Result<Arc<Container>, CreateError> {
    let (sandbox, mounts) = tokio::try_join!(sandbox, mount(&options, &plan, shared))?;
    let wanted = HostDevices { disks: &plan.disks, functions: &plan.functions, ..HostDevices::default() };
    let (assignment, devices) = sandbox.assign(wanted).await?;
    match ask(&options, &plan, &sandbox, devices).await {
        Ok(streams) => {
            let init = Process::new(&options.id, "", options.uris, options.terminal);
            init.set_streams(streams);
            let assigned = (mounts, assignment);
            let resources = plan.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
            let applied =
                resources.map_or_else(Applied::default, |resources| Applied::default().with(resources));
            let process = plan.spec.process().clone().unwrap_or_default();
            let started = (applied, process, options.hooks);
            let container =
                Container::new(options.id, options.bundle, sandbox, init, assigned, started, reporter);
            let container = Arc::new(container);
            container.report(Report::Created);
            container.watch(container.init.clone());
            Ok(container)
        }
        Err(error) => {
            sandbox.unassign(assignment).await;
            Err(error)
        }
    }
}

/// Has the agent create the container.
async fn ask(
    options: &CreateOptions,
    plan: &ContainerPlan,
    sandbox: &Sandbox,
    devices: Vec<message::DeviceAssignment>,
) -> Result<Streams, CreateError> {
    let (mut streams, stdio) = Streams::open(&options.uris, options.terminal, &options.id).await?;

    let mut request = CreateContainerRequest::new();
    request.container_id.clone_from(&options.id);
    request.spec = serde_json::to_vec(&plan.spec)
        .map_err(|e| TaskError::Malformed { part: "OCI spec", reason: e.to_string() })?;
    request.rootfs = container_directory(&options.id).join("rootfs").display().to_string();
    request.devices.clone_from(&devices);
    request.all_guest_devices = plan.all_devices;
    request.stdio = Some(stdio).into();
    (request.rows, request.columns) = plan.terminal_size;
    let answer = sandbox.agent.create_container(request).await?;
    if let Err(error) = streams.connect(&sandbox.ports).await {
        if let Err(error) = sandbox.agent.remove_container(&options.id, true).await {
            tracing::warn!(container = options.id, error = %crate::failure::chain(&error), "undo");
        }
        return Err(error.into());
    }
    if let Err(error) = devices::record(&options.bundle, DeviceMap::of_plan(plan), &devices, answer) {
        // The container exists all the same; only `kiai inspect --devices` will not show its devices.
        tracing::warn!(error = %crate::failure::chain(&error), "the container's devices cannot be recorded");
    }
    Ok(streams)
}

async fn mount(
    options: &CreateOptions,
    plan: &ContainerPlan,
    shared: &Path,
) -> Result<ContainerMounts, CreateError> {
    let directory = shared.join(&options.id);
    let rootfs = options.rootfs.clone();
    let root = plan.spec.root().as_ref().map_or_else(|| PathBuf::from("rootfs"), |root| root.path().clone());
    let fallback = options.bundle.join(root);
    let volumes = plan.volumes.clone();
    let mounting =
        tokio::task::spawn_blocking(move || ContainerMounts::mount(directory, &rootfs, &fallback, &volumes))
            .await;
    match mounting {
        Ok(mounts) => Ok(mounts?),
        Err(panic) => Err(TaskError::Panicked(format!("mounting: {panic}")).into()),
    }
}
