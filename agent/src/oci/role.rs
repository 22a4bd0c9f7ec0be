//! The helper's side: it serves one request and ends. Runs as a process of its own with one thread.

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use libcontainer::syscall::syscall::SyscallType;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::payload::Payload;
use super::{Answer, Request, channel, plug, pod_init};

/// Runs the helper: descriptor 0 is the channel, descriptor 2 the log.
///
/// Both are moved to other descriptors, because the container's process gets 0 to 2.
pub fn main(level: tracing::Level) -> anyhow::Result<()> {
    crate::panics::abort_on_panic();
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context("take the helper channel")?;
    let log = std::io::stderr().as_fd().try_clone_to_owned().context("take the log")?;
    let null = File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let reasons = Reasons::new().context("make the file for reasons")?;
    crate::log::start(log.into(), level, Some(reasons.0.try_clone()?));

    let (request, descriptors) =
        channel::receive::<Request>(&socket)?.context("the agent closed the helper channel")?;
    let (answer, master) = match serve(request, descriptors) {
        Ok(served) => served,
        Err(error) => match error.downcast_ref::<plug::FailedPrecondition>() {
            Some(failed) => (Answer::FailedPrecondition(failed.to_string()), None),
            None => (Answer::Failed(reasons.explain(&error)), None),
        },
    };
    let descriptors: Vec<_> = master.iter().map(AsFd::as_fd).collect();
    channel::send(&socket, &answer, &descriptors).context("answer the agent")
}

fn serve(request: Request, descriptors: Vec<OwnedFd>) -> anyhow::Result<(Answer, Option<OwnedFd>)> {
    // The agent's own limits are as high as the kernel allows; programs expect a service manager's.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: Some(524_288) });
    let (pid, master) = match request {
        Request::Create { id, bundle, state, terminal } => create(id, &bundle, &state, terminal, descriptors),
        Request::Exec { id, state, process, terminal } => exec(id, &state, &process, terminal, descriptors),
        Request::PodInit => pod_init::start().map(|pid| (pid, None)),
        Request::Plug(changes) => return done(plug::plug(&changes, &descriptors)),
        Request::Unplug(changes) => return done(plug::unplug(&changes, &descriptors)),
    }?;
    Ok((Answer::Pid(pid), master))
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<(Answer, Option<OwnedFd>)> {
    result.map(|()| (Answer::Done, None))
}

fn create(
    id: String,
    bundle: &Path,
    state: &Path,
    terminal: bool,
    mut descriptors: Vec<OwnedFd>,
) -> anyhow::Result<(i32, Option<OwnedFd>)> {
    ensure!(!descriptors.is_empty(), "a create request comes with a start pipe");
    let payload = Payload { started: Some(Arc::new(descriptors.remove(0))), ..Payload::default() };
    let console = Console::listen(bundle, terminal)?;
    let container = builder(id, state, &console, payload, descriptors)?
        .as_init(bundle)
        .with_systemd(false)
        // Init becomes a child of the agent itself, at once and not only when this helper ends.
        .as_sibling(true)
        .build()?;
    let pid = container.pid().context("libcontainer built a container without a pid")?.as_raw();
    Ok((pid, console.map(Console::master).transpose()?))
}

fn exec(
    id: String,
    state: &Path,
    process: &Path,
    terminal: bool,
    descriptors: Vec<OwnedFd>,
) -> anyhow::Result<(i32, Option<OwnedFd>)> {
    // `Payload` drops capabilities and loads seccomp.
    let text = std::fs::read(process).with_context(|| format!("read {process:?}"))?;
    let mut wanted: Process = serde_json::from_slice(&text).with_context(|| format!("parse {process:?}"))?;
    let payload = Payload {
        started: None,
        seccomp: seccomp_of(&state.join(&id))?,
        capabilities: Some(wanted.capabilities().clone().unwrap_or_default()),
    };
    wanted.set_capabilities(None);
    std::fs::write(process, serde_json::to_vec(&wanted)?).with_context(|| format!("write {process:?}"))?;

    let console = Console::listen(state, terminal)?;
    let pid = builder(id, state, &console, payload, descriptors)?
        .as_tenant()
        .with_detach(true)
        .as_sibling(true)
        .with_process(Some(process))
        .build()?;
    Ok((pid.as_raw(), console.map(Console::master).transpose()?))
}

fn builder(
    id: String,
    state: &Path,
    console: &Option<Console>,
    payload: Payload,
    descriptors: Vec<OwnedFd>,
) -> anyhow::Result<ContainerBuilder> {
    let mut builder = ContainerBuilder::new(id, SyscallType::default())
        .validate_id()?
        .with_root_path(state)?
        .with_executor(payload);
    if let Some(console) = console {
        ensure!(descriptors.is_empty(), "a process with a terminal takes no other standard streams");
        return Ok(builder.with_console_socket(Some(console.path.clone())));
    }
    let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(descriptors)
        .map_err(|wrong| anyhow::anyhow!("three standard streams are needed, not {}", wrong.len()))?;
    builder.stdin = Some(stdin);
    builder.stdout = Some(stdout);
    builder.stderr = Some(stderr);
    Ok(builder)
}

/// The container's seccomp profile, from the specification it was created with.
fn seccomp_of(state: &Path) -> anyhow::Result<Option<LinuxSeccomp>> {
    let container = Container::load(state.to_owned())?;
    let spec = Spec::load(container.bundle().join("config.json"))?;
    Ok(spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()))
}

/// The socket on which libcontainer hands over the master side of a terminal.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn listen(directory: &Path, terminal: bool) -> anyhow::Result<Option<Self>> {
        if !terminal {
            return Ok(None);
        }
        // A socket's path has at most 107 bytes and an id may have 128: bind it relative to the directory.
        std::env::set_current_dir(directory).with_context(|| format!("enter {directory:?}"))?;
        let listener = UnixListener::bind("console.sock").context("bind the console socket")?;
        std::env::set_current_dir("/")?;
        let path = directory.join("console.sock");
        Ok(Some(Self { listener, path }))
    }

    /// Receives the master side, which libcontainer has sent before its build returned.
    fn master(self) -> anyhow::Result<OwnedFd> {
        let (connection, _) = self.listener.accept().context("accept on the console socket")?;
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&connection, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .context("receive the terminal")?;
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut received) = ancillary
                && let Some(master) = received.next()
            {
                let _ = std::fs::remove_file(&self.path);
                return Ok(master);
            }
        }
        bail!("no terminal came over the console socket")
    }
}

/// The errors that libcontainer has logged in any of its processes: a file in memory that they inherit.
struct Reasons(File);

impl Reasons {
    fn new() -> std::io::Result<Self> {
        Ok(Self(rustix::fs::memfd_create("reasons", rustix::fs::MemfdFlags::CLOEXEC)?.into()))
    }

    /// The error with the first two logged errors, which are nearest to the cause.
    fn explain(&self, error: &anyhow::Error) -> String {
        let mut logged = vec![0; 2048];
        let length = self.0.read_at(&mut logged, 0).unwrap_or(0);
        let logged = String::from_utf8_lossy(&logged[..length]);
        let mut explained = format!("{error:#}");
        explained.truncate(explained.floor_char_boundary(4096));
        for line in logged.lines().take(2) {
            explained.push_str("; ");
            explained.push_str(line);
        }
        explained
    }
}
