//! Boots a sandbox as its plan says, and returns once the agent answers.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kiai_protocol::agent::CreateSandboxRequest;
use kiai_protocol::agent::Storage;
use kiai_protocol::agent::Tmpfs;
use kiai_protocol::agent::VirtioFs;
use kiai_protocol::agent::storage::Source;
use kiai_protocol::ports;
use kiai_vmm::DeviceConfig;
use kiai_vmm::NamedFile;
use kiai_vmm::VmConfig;
use kiai_vmm::VmHandle;
use kiai_vmm::vsock::VsockPorts;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

use super::Sandbox;
use super::SharedDirectory;
use super::first_port;
use super::network;
use super::watch_end;
use crate::agent::Agent;
use crate::failure::Failure;
use crate::failure::Outcome;
use crate::failure::chain;
use crate::plan::GUEST_SHM;
use crate::plan::SandboxPlan;

/// Boots. On an error the microVM is gone, and with it all that was made.
pub async fn boot(plan: SandboxPlan, bundle: &Path) -> Outcome<Sandbox> {
    let shared = SharedDirectory::create(bundle).map_err(|e| Failure::host("shared directory", &e))?;
    let ports = VsockPorts::new().map_err(|e| Failure::host("vsock", &e))?;
    let ready = listen_for_ready(&ports)?;

    let (nics, network) = match &plan.network {
        Some(path) => network::take_over(path, plan.vcpus).await?,
        None => Default::default(),
    };
    let config = configure(&plan, &shared, &ports, nics)?;
    let vm = tokio::task::spawn_blocking(move || {
        let vm = VmHandle::build(config).map_err(|e| classify(&e))?;
        vm.resume().map_err(|e| Failure::host("start the microVM", &e))?;
        Ok::<_, Failure>(vm)
    })
    .await
    .map_err(|e| Failure::host("build the microVM", &e))??;

    let ending = Arc::new(AtomicBool::new(false));
    let ended =
        watch_end(vm.clone(), bundle, ending.clone()).map_err(|e| Failure::host("watch the microVM", &e))?;
    let limit = Duration::from_secs(plan.boot_timeout_seconds.into());
    let mut watched = ended.clone();
    tokio::select! {
        stream = ready => check_ready(stream).await?,
        reason = super::reason(&mut watched) => {
            return Err(Failure::internal(format!("{reason}{}", console(&vm))));
        }
        () = tokio::time::sleep(limit) => {
            let waited = plan.boot_timeout_seconds;
            return Err(Failure::internal(format!("no agent after {waited} s{}", console(&vm))));
        }
    }
    let agent = ports.connect(ports::AGENT_PORT).and_then(Agent::new);
    let agent = agent.map_err(|e| Failure::host("connect to the agent", &e))?;
    let next_port = first_port();
    let sandbox = Sandbox { vm, ports, agent, shared, next_port, ending, ended };
    create(&sandbox, &plan).await?;
    network.configure(&sandbox).await?;
    Ok(sandbox)
}

/// The guest's console as the end of a message.
fn console(vm: &VmHandle) -> String {
    let tail = vm.console_tail();
    let lines: Vec<&str> = tail.lines().rev().take(20).collect();
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    if lines.is_empty() { String::new() } else { format!("; the guest's console:\n{}", lines.join("\n")) }
}

fn listen_for_ready(ports: &VsockPorts) -> Outcome<oneshot::Receiver<UnixStream>> {
    let (sender, receiver) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let accept = Box::new(move |stream: UnixStream| {
        if let Some(sender) = sender.lock().ok().and_then(|mut sender| sender.take()) {
            let _ = sender.send(stream);
        }
    });
    ports.listen(ports::READY_PORT, accept).map_err(|e| Failure::host("vsock", &e))?;
    Ok(receiver)
}

/// The agent says what it is before anything is asked of it.
async fn check_ready(stream: Result<UnixStream, oneshot::error::RecvError>) -> Outcome<()> {
    let stream = stream.map_err(|e| Failure::host("agent", &e))?;
    let mut magic = [0; ports::READY_MAGIC.len()];
    let read = async {
        stream.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(stream)?.read_exact(&mut magic).await
    };
    read.await.map_err(|e| Failure::host("agent", &e))?;
    if magic != *ports::READY_MAGIC {
        return Err(Failure::internal(format!("the guest's agent speaks another protocol: {magic:02x?}")));
    }
    Ok(())
}

fn configure(
    plan: &SandboxPlan,
    shared: &SharedDirectory,
    ports: &Arc<VsockPorts>,
    nics: Vec<DeviceConfig>,
) -> Outcome<VmConfig> {
    let mut devices = vec![
        DeviceConfig::Vsock { ports: ports.clone() },
        DeviceConfig::Fs { tag: ports::SHARED_TAG.to_owned(), directory: shared.path().to_owned() },
        DeviceConfig::Rng,
    ];
    devices.extend(nics);
    let console = plan.console.as_deref().map(open_console).transpose()?;
    Ok(VmConfig {
        vcpus: plan.vcpus,
        max_vcpus: plan.vcpus,
        memory_mib: plan.memory_mib,
        huge_pages: plan.huge_pages,
        kernel: open("guest kernel", &plan.kernel)?,
        initrd: Some(open("guest initrd", &plan.initrd)?),
        command_line: plan.kernel_parameters.clone(),
        console,
        devices,
    })
}

fn open(what: &str, path: &Path) -> Outcome<NamedFile> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => Ok(NamedFile { name, file }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(Failure::not_found(format!("{what} {name} does not exist")))
        }
        Err(e) => Err(Failure::host(format!("{what} {name}"), &e)),
    }
}

/// A console that may be a fifo must not stop the guest: what it does not take at once is dropped.
fn open_console(path: &Path) -> Outcome<Box<dyn Write + Send>> {
    let failed = |e: io::Error| Failure::host(format!("console {}", path.display()), &e);
    let mut options = File::options();
    options.append(true).create(true);
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    Ok(Box::new(options.open(path).map_err(failed)?))
}

/// A damaged kernel is the caller's, everything else is ours.
fn classify(e: &kiai_vmm::BootError) -> Failure {
    match e {
        kiai_vmm::BootError::Load(_) | kiai_vmm::BootError::Config(_) => Failure::invalid(chain(e)),
        _ => Failure::internal(chain(e)),
    }
}

async fn create(sandbox: &Sandbox, plan: &SandboxPlan) -> Outcome<()> {
    let shared = Source::VirtioFs(VirtioFs { tag: ports::SHARED_TAG.to_owned(), ..Default::default() });
    let mut storages = vec![Storage {
        source: Some(shared),
        mount_point: ports::SHARED_MOUNT.to_owned(),
        ..Default::default()
    }];
    if plan.shared_memory {
        storages.push(Storage {
            source: Some(Source::Tmpfs(Tmpfs { mode: 0o1777, ..Default::default() })),
            mount_point: GUEST_SHM.to_owned(),
            options: ["nosuid", "nodev", "noexec"].map(str::to_owned).to_vec(),
            ..Default::default()
        });
    }
    let request = CreateSandboxRequest {
        sandbox_id: plan.id.clone(),
        hostname: plan.hostname.clone(),
        storages,
        ..Default::default()
    };
    let call = sandbox.agent.service().create_sandbox(Agent::call(), &request);
    sandbox.alive(call).await.map(|_| ())
}
