//! Booting a sandbox: from its plan to a microVM whose agent answers.
//!
//! A machine that goes on from a template ([`super::template`]) is told apart from others of that template first, and finds
//! its network interfaces by a rescan of its bus; then both kinds are alike.
//!
//! The machine is built while the pod's network is taken over; the guest boots while the caller prepares the first
//! container. It boots on one vCPU while the others are made, which come online before a container's first process
//! starts. The wait ends when the agent connects: nothing polls.

use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiai_protocol::ports::AGENT_PORT;
use kiai_protocol::ports::SHARED_MOUNT;
use kiai_protocol::ports::SHARED_TAG;
use kiai_vmm::Contents;
use kiai_vmm::DeviceConfig;
use kiai_vmm::NamedFile;
use kiai_vmm::RestoreConfig;
use kiai_vmm::VmConfig;
use kiai_vmm::VmHandle;
use kiai_vmm::vsock::VsockPorts;

use super::EndWatch;
use super::GrowError;
use super::Machine;
use super::Sandbox;
use super::assignments::Assignments;
use super::end::tail;
use super::resize;
use super::resize::FirstCpus;
use super::template;
use super::template::Template;
use crate::agent::Agent;
use crate::agent::AgentError;
use crate::agent::Ready;
use crate::agent::ReadyError;
use crate::agent::message;
use crate::failure::chain;
use crate::host::Network;
use crate::host::NetworkError;
use crate::host::network;
use crate::plan::GUEST_SHM;
use crate::plan::SandboxPlan;

/// Bytes of a pod's /dev/shm.
const SHM_BYTES: u64 = 64 << 20;

/// Why a sandbox did not boot; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum SandboxBootError {
    /// The kernel, the initrd or the console file cannot be opened.
    #[error("open {file} {path}")]
    File {
        /// Which of them.
        file: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The VMM refuses to build the machine.
    #[error("build the microVM")]
    Build(#[source] kiai_vmm::BootError),
    /// The machine refuses a network interface.
    #[error("attach network interface {name} to the microVM")]
    Nic {
        /// The interface's name in the pod.
        name: String,
        /// The reason.
        #[source]
        source: kiai_vmm::AttachError,
    },
    /// The pod's network cannot be taken over.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The host refused a thread, an eventfd or the like.
    #[error("{step}")]
    Host {
        /// The step that failed.
        step: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The guest ended before its agent connected.
    #[error("the guest ended while it booted ({images}): {ending}; its console ended with:\n{console}")]
    Died {
        /// The kernel and initrd that were booted: one of them may be damaged.
        images: String,
        /// How it ended.
        ending: kiai_vmm::Ending,
        /// The last lines of its console.
        console: String,
    },
    /// The guest runs, but its agent does not connect.
    #[error(
        "the guest's agent did not connect within {seconds} s ({images}); the console ended with:\n{console}"
    )]
    Silent {
        /// The kernel and initrd that were booted.
        images: String,
        /// The time-out, seconds.
        seconds: u32,
        /// The last lines of the console.
        console: String,
    },
    /// The connection to the ready port was not the agent's.
    #[error(transparent)]
    Ready(#[from] ReadyError),
    /// The agent failed to set up the guest.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The guest did not plug its memory.
    #[error(transparent)]
    Memory(#[from] GrowError),
    /// The machine cannot have that much memory.
    #[error("request memory for the guest")]
    MemorySize(#[from] kiai_vmm::MemoryRequestError),
}

/// Boots the sandbox, or has it go on from a template; `shared` is the directory that its guest sees. Every step that can
/// fail early is done before the guest runs.
pub async fn boot(plan: SandboxPlan, shared: PathBuf) -> Result<Sandbox, SandboxBootError> {
    let host = |step| move |source| SandboxBootError::Host { step, source };
    let ports = VsockPorts::new().map_err(host("vsock ports"))?;
    let ready = Ready::listen(&ports)?;

    let namespace = plan.network.clone();
    let queues = usize::from(plan.size.vcpus);
    let network = tokio::task::spawn_blocking(move || match namespace {
        Some(path) => network::take_over(&path, queues, None),
        None => Ok(Network::default()),
    });
    let start = {
        let (plan, ports) = (plan.clone(), ports.clone());
        tokio::task::spawn_blocking(move || start(&plan, &shared, &ports))
    };
    let (started, network) = tokio::join!(start, network);
    let gone =
        |step| move |_| SandboxBootError::Host { step, source: io::Error::other("the thread panicked") };
    let (vm, origin) = started.map_err(gone("build the microVM"))??;
    let mut network = network.map_err(gone("take over the network"))??;

    let end = EndWatch::of(&vm.0).map_err(host("wait for the microVM"))?;
    for nic in &mut network.nics {
        let taps = std::mem::take(&mut nic.taps);
        let config = DeviceConfig::Net { taps, mac: nic.mac, mtu: nic.mtu };
        vm.0.attach(config).map_err(|source| SandboxBootError::Nic { name: nic.name.clone(), source })?;
    }
    // The guest plugs the rest of its memory as soon as its driver is loaded, while the agent starts.
    vm.0.request_memory(plan.size.memory_mib)?;
    if vm.0.resume().is_err() {
        return Err(died(&plan, end.wait().await));
    }
    let cpus = FirstCpus::create(&vm.0, plan.bounds.boot_vcpus, plan.size.vcpus);
    let patience = Duration::from_secs(plan.boot_timeout_seconds.into());
    if origin == Origin::Boot {
        wait_ready(&plan, &vm, &end, ready, patience).await?;
    }

    let agent = ports.connect(AGENT_PORT).and_then(Agent::new).map_err(host("connect to the agent"))?;
    let prepared = async {
        if origin == Origin::Template {
            // Before anything else: others go on from the same state, and have drawn the same numbers from it.
            agent.add_entropy(fresh_entropy()?).await?;
            if !network.nics.is_empty() {
                // It has been booted before they were attached.
                agent.rescan_pci(Vec::new()).await?;
            }
        }
        tokio::try_join!(
            agent.create_sandbox(request(&plan)),
            agent.set_clock(),
            agent.configure_network(&network)
        )?;
        resize::grown(&vm.0).await.map_err(SandboxBootError::from)
    };
    tokio::select! {
        // A guest that dies closes the connection as well, but its end has a reason and a console.
        biased;
        ended = end.wait() => return Err(died(&plan, ended)),
        prepared = prepared => prepared?,
    };
    let pod = tokio::sync::Mutex::new(plan.limits);
    let (assignments, groups) = (Assignments::default(), super::vfio::OpenGroups::default());
    let network = (plan.network, queues);
    Ok(Sandbox { agent, ports, end, bounds: plan.bounds, pod, cpus, vm, network, groups, assignments })
}

/// How a machine has come to where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It is about to boot.
    Boot,
    /// Its agent serves already.
    Template,
}

/// A paused machine. A template that cannot be used is reported, and the machine boots.
fn start(
    plan: &SandboxPlan,
    shared: &Path,
    ports: &Arc<VsockPorts>,
) -> Result<(Machine, Origin), SandboxBootError> {
    let template = plan.templates.as_ref().filter(|_| !plan.huge_pages);
    if let Some(Template { state, memory }) = template.and_then(|templates| template::find(templates, plan)) {
        let name = state.name.clone();
        let console = console(plan)?;
        let devices = devices(shared.into(), ports.clone());
        let contents = Contents::Mapped;
        match VmHandle::restore(RestoreConfig { state, memory, contents, console, devices }) {
            Ok(vm) => {
                tracing::debug!("the sandbox goes on from template {name}");
                return Ok((Machine(vm), Origin::Template));
            }
            Err(error) => tracing::warn!(error = %chain(&error), "template {name} is of no use"),
        }
    }
    let vm = VmHandle::build(machine(plan, shared.into(), ports.clone())?);
    Ok((Machine(vm.map_err(SandboxBootError::Build)?), Origin::Boot))
}

/// Returns when the agent has connected.
pub(super) async fn wait_ready(
    plan: &SandboxPlan,
    vm: &Machine,
    end: &EndWatch,
    ready: Ready,
    patience: Duration,
) -> Result<(), SandboxBootError> {
    tokio::select! {
        connected = ready.wait() => Ok(connected?),
        ended = end.wait() => Err(died(plan, ended)),
        () = tokio::time::sleep(patience) => Err(SandboxBootError::Silent {
            images: images(plan),
            seconds: plan.boot_timeout_seconds,
            console: tail(&vm.0.console_tail()),
        }),
    }
}

fn images(plan: &SandboxPlan) -> String {
    format!("kernel {}, initrd {}", plan.kernel.display(), plan.initrd.display())
}

pub(super) fn died(plan: &SandboxPlan, ended: super::SandboxEnd) -> SandboxBootError {
    SandboxBootError::Died { images: images(plan), ending: ended.ending, console: tail(&ended.console) }
}

/// Seeds a generator of 256 bits twice over.
fn fresh_entropy() -> Result<Vec<u8>, SandboxBootError> {
    let mut bytes = vec![0; 64];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| SandboxBootError::Host { step: "entropy for the guest", source: errno.into() })?;
    Ok(bytes)
}

fn console(plan: &SandboxPlan) -> Result<Option<Box<dyn io::Write + Send>>, SandboxBootError> {
    let Some(path) = &plan.console else { return Ok(None) };
    let file = File::options().append(true).create(true).open(path);
    let failed = |source| SandboxBootError::File { file: "console", path: path.clone(), source };
    Ok(Some(Box::new(file.map_err(failed)?)))
}

/// What every machine has, in the order of the slots. Those of templates have no others.
fn devices(shared: PathBuf, ports: Arc<VsockPorts>) -> Vec<DeviceConfig> {
    vec![
        DeviceConfig::Vsock { ports },
        DeviceConfig::Fs { tag: SHARED_TAG.into(), directory: shared },
        DeviceConfig::Rng,
        DeviceConfig::Balloon,
    ]
}

pub(super) fn machine(
    plan: &SandboxPlan,
    shared: PathBuf,
    ports: Arc<VsockPorts>,
) -> Result<VmConfig, SandboxBootError> {
    Ok(VmConfig {
        vcpus: plan.bounds.boot_vcpus,
        max_vcpus: plan.bounds.most_vcpus,
        memory_mib: plan.bounds.boot_mib,
        max_memory_mib: plan.bounds.most_mib,
        huge_pages: plan.huge_pages,
        kernel: open("kernel", &plan.kernel)?,
        initrd: Some(open("initrd", &plan.initrd)?),
        command_line: plan.kernel_parameters.clone(),
        console: console(plan)?,
        devices: devices(shared, ports),
    })
}

fn open(role: &'static str, path: &Path) -> Result<NamedFile, SandboxBootError> {
    let failed = |source| SandboxBootError::File { file: role, path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    Ok(NamedFile { name: path.display().to_string(), file })
}

fn request(plan: &SandboxPlan) -> message::CreateSandboxRequest {
    let mut request = message::CreateSandboxRequest::new();
    request.sandbox_id.clone_from(&plan.id);
    request.hostname.clone_from(&plan.hostname);
    let mut virtio_fs = message::VirtioFs::new();
    virtio_fs.tag = SHARED_TAG.into();
    let mut shared = message::Storage::new();
    shared.set_virtio_fs(virtio_fs);
    shared.mount_point = SHARED_MOUNT.into();
    request.storages.push(shared);
    if plan.shared_memory {
        let mut tmpfs = message::Tmpfs::new();
        tmpfs.size = SHM_BYTES;
        tmpfs.mode = 0o1777;
        let mut storage = message::Storage::new();
        storage.set_tmpfs(tmpfs);
        storage.mount_point = GUEST_SHM.into();
        request.storages.push(storage);
    }
    request
}
