//! `serve`: the Task service on the shim's socket, in a session and mount namespace of its own, until it is asked to
//! end.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::ttrpc::asynchronous::Server;
use oci_spec::runtime::Spec;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc;

use super::afterwards::Afterwards;
use super::arguments::Arguments;
use super::connections;
use super::launch::SERVING;
use super::pod::Pod;
use super::pod::PodOptions;
use super::task;
use crate::failure::RpcError;
use crate::failure::RpcResult;
use crate::failure::chain;
use crate::host::cgroup;
use crate::host::mount;
use crate::host::namespaces;
use crate::host::process;
use crate::network::held;
use crate::network::held::Held;
use crate::plan;
use crate::plan::NetworkNamespace;

/// How long the last answers and events may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) fn serve(arguments: &Arguments) -> RpcResult<()> {
    let (listener, mut told) = inherited()?;
    let result = prepare(arguments).and_then(|prepared| run(arguments, listener, prepared, &mut told));
    if let Err(e) = &result {
        tracing::error!("{e}");
        // `launch` reads the reason, unless the shim has reported that it serves.
        let _ = told.write_all(e.to_string().as_bytes());
    }
    // Files that are still open are closed with the process.
    std::process::exit(i32::from(result.is_err()));
}

/// The socket and the pipe that `launch` passed as standard input and output, which become /dev/null.
fn inherited() -> RpcResult<(UnixListener, File)> {
    let failed = |e: rustix::io::Errno| RpcError::host("standard streams of the shim", &io::Error::from(e));
    let close_on_exec = |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(failed);
    let listener = close_on_exec(rustix::stdio::stdin())?;
    let told = close_on_exec(rustix::stdio::stdout())?;
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|e| RpcError::host("/dev/null", &e))?;
    rustix::stdio::dup2_stdin(&null).map_err(failed)?;
    rustix::stdio::dup2_stdout(&null).map_err(failed)?;
    Ok((UnixListener::from(listener), File::from(told)))
}

/// The parts that are set up before the process has threads.
struct Prepared {
    bundle: PathBuf,
    /// Held until the process ends.
    _ports: Held,
    afterwards: Option<Afterwards>,
    /// The process is in a network namespace that was made for the pod.
    own_network: bool,
    cgroup: Option<cgroup::Joined>,
}

fn prepare(arguments: &Arguments) -> RpcResult<Prepared> {
    kiai_vmm::descriptors::reserve();
    // Fails only if this process is a session leader already.
    let _ = rustix::process::setsid();
    log(arguments.debug);
    let afterwards =
        Afterwards::of(&arguments.afterwards).map_err(|e| RpcError::host("mount namespace", &e))?;
    namespaces::remember().map_err(|e| RpcError::host("namespaces of the host", &e))?;
    // A namespace belongs to a thread, and threads that it starts inherit it.
    mount::enter_own_namespace().map_err(|e| RpcError::host("mount namespace", &e))?;
    process::protect_from_oom();
    let ports = held::hold(&arguments.ports).map_err(|e| RpcError::already_exists(chain(&e)))?;
    let bundle = arguments.bundle()?;
    // If the spec cannot be read, the first create refuses it.
    let spec = Spec::load(bundle.join("config.json")).ok();
    // After the ports, which are of the host.
    let own_network = spec.as_ref().map_or(Ok(false), enter_network)?;
    let cgroup = spec.and_then(|spec| {
        let path = spec.linux().as_ref()?.cgroups_path().clone()?;
        (!path.as_os_str().is_empty()).then(|| cgroup::join(&cgroup::relative_path(&path)))
    });
    Ok(Prepared { bundle, _ports: ports, afterwards, own_network, cgroup })
}

/// Enters the pod's network namespace: clients and hooks look for the pod's interfaces by the pid of its task. Returns
/// whether it was made for the pod.
fn enter_network(spec: &Spec) -> RpcResult<bool> {
    match plan::network_namespace(spec) {
        NetworkNamespace::None => Ok(false),
        NetworkNamespace::At(path) => {
            if let Err(error) = namespaces::enter_network(&path) {
                // The first create names it, unless it is there by then.
                tracing::warn!(path = %path.display(), %error, "enter network namespace");
            }
            Ok(false)
        }
        NetworkNamespace::New => {
            namespaces::enter_new_network().map_err(|e| RpcError::host("network namespace", &e))?;
            Ok(true)
        }
    }
}

fn run(arguments: &Arguments, listener: UnixListener, prepared: Prepared, told: &mut File) -> RpcResult<()> {
    let address = listener.local_addr().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| RpcError::host("tokio runtime", &e))?;
    let entered = runtime.enter();
    let pod = Pod::new(PodOptions {
        id: arguments.id.clone(),
        namespace: arguments.namespace.clone(),
        bundle: prepared.bundle,
        config: arguments.config.clone(),
        own_network: prepared.own_network,
        afterwards: prepared.afterwards,
    });
    drop(entered);
    *pod.cgroup.lock() = prepared.cgroup;
    let result = runtime.block_on(async {
        let (open, mut closed) = mpsc::channel(1);
        let listener =
            connections::listen(listener, open).map_err(|e| RpcError::host("listening socket", &e))?;
        let mut server = Server::new().add_listener(listener).register_service(task::services(&pod));
        let signal =
            |kind| tokio::signal::unix::signal(kind).map_err(|e| RpcError::host("signal handler", &e));
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        server.start().await.map_err(|e| RpcError::internal(format!("serve: {}", chain(&e))))?;
        told.write_all(SERVING.as_bytes()).map_err(|e| RpcError::host("say that the shim serves", &e))?;
        // Closed, which ends the read of `launch`.
        *told = null_file()?;
        tokio::select! {
            () = pod.stopped() => {}
            _ = terminate.recv() => tracing::info!("asked to terminate"),
            _ = interrupt.recv() => tracing::info!("interrupted"),
        }
        pod.end().await;
        // Waits for the answers of the last calls and for containerd's last events.
        let last_words = async {
            let _ = tokio::join!(server.shutdown(), pod.events.flush());
            // Nothing is sent: it returns when the last connection is closed and its answers are written.
            closed.recv().await
        };
        if tokio::time::timeout(LAST_WORDS, last_words).await.is_err() {
            tracing::debug!("a client or containerd does not read the last messages");
        }
        Ok(())
    });
    if let Some(path) = address.as_ref().and_then(|address| address.as_pathname()) {
        let _ = fs::remove_file(path);
    }
    let cgroup = pod.cgroup.lock().take();
    drop(pod);
    // Dropping the tasks drops the last reference to the VM. KVM has a thread in this process's cgroup as long as the
    // VM exists, and a cgroup with a thread cannot be removed.
    runtime.shutdown_timeout(LAST_WORDS);
    if let Some(cgroup) = cgroup {
        cgroup.leave();
    }
    result
}

fn null_file() -> RpcResult<File> {
    File::options().write(true).open("/dev/null").map_err(|e| RpcError::host("/dev/null", &e))
}

/// Starts the log: to standard error, which is the bundle's shim.log, and to containerd's fifo if there is one.
fn log(debug: bool) {
    let level = if debug { "debug" } else { "info" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("KIAI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let fifo = File::options().write(true).custom_flags(libc::O_NONBLOCK).open("log").ok();
    let fifo = fifo.map(std::sync::Arc::new);
    let writer = move || Log { fifo: fifo.clone() };
    // Fails only in tests, which have a subscriber already.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(writer).try_init();
}

struct Log {
    /// containerd's fifo, which it may not read.
    fifo: Option<std::sync::Arc<File>>,
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(fifo) = &self.fifo {
            // The fifo is full or unread: the message is in the file.
            let _ = fifo.as_ref().write(bytes);
        }
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
