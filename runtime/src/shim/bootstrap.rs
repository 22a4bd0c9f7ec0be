//! Getting the shim's process going, and clearing up after one that is gone (containerd
//! `core/runtime/v2/README.md`, "Commands").
//!
//!     containerd-shim-kiai-v2 -namespace N -id ID -address A start    prints the socket's address
//!     containerd-shim-kiai-v2 -namespace N -id ID -bundle B delete    clears up, prints the exit
//!
//! The serving process is this program again; it inherits its listening socket as standard input, so that a
//! client can connect before it serves.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::asynchronous::Server;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use sha2::Digest;
use sha2::Sha256;

use super::SHIM_NAME;
use super::events::timestamp;
use super::service;
use super::service::Service;
use super::task;
use crate::failure::Failure;
use crate::failure::Outcome;
use crate::failure::chain;
use crate::host::mount;
use crate::plan::Annotations;
use crate::plan::Role;
use crate::plan::check_id;

/// Where containerd expects sockets of shims.
const SOCKETS: &str = "/run/containerd/s";
/// Files of the shim in its bundle.
const ADDRESS_FILE: &str = "address";
const PID_FILE: &str = "shim.pid";
const LOG_FILE: &str = "shim.log";

/// What a shim is started with.
#[derive(Debug, Clone, Default)]
pub struct LaunchOptions {
    /// Id of the first container, which names the sandbox.
    pub id: String,
    /// containerd's namespace, or the CLI's.
    pub namespace: String,
    /// The first container's bundle.
    pub bundle: PathBuf,
    /// containerd's socket; none for the CLI.
    pub address: Option<PathBuf>,
    /// Log more.
    pub debug: bool,
}

/// Starts a shim and returns its socket, which accepts connections from now on.
pub fn launch(options: &LaunchOptions) -> Outcome<PathBuf> {
    check_id(&options.id)?;
    let socket = socket_path(options);
    let failed = |step: &str, e: io::Error| Failure::host(format!("{step} {}", socket.display()), &e);
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent).map_err(|e| failed("create the directory of", e))?;
    }
    let listener = match UnixListener::bind(&socket) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            // A socket nobody listens on is what a killed shim leaves; one that answers is a running shim's.
            if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
                return Err(Failure::already_exists(format!("a shim of {} is running", options.id)));
            }
            fs::remove_file(&socket).map_err(|e| failed("remove", e))?;
            UnixListener::bind(&socket)
        }
        other => other,
    }
    .map_err(|e| failed("listen on", e))?;
    spawn(options, listener).inspect_err(|_| drop(fs::remove_file(&socket)))?;
    Ok(socket)
}

fn spawn(options: &LaunchOptions, listener: UnixListener) -> Outcome<()> {
    let program = std::env::current_exe().map_err(|e| Failure::host("find this program", &e))?;
    let log = options.bundle.join(LOG_FILE);
    let failed = |e: io::Error| Failure::host(format!("start the shim in {}", options.bundle.display()), &e);
    let log = File::options().append(true).create(true).open(log).map_err(failed)?;
    let mut command = Command::new(program);
    command.arg0(SHIM_NAME).args(["-namespace", &options.namespace, "-id", &options.id]);
    if let Some(address) = &options.address {
        command.arg("-address").arg(address);
    }
    if options.debug {
        command.arg("-debug");
    }
    let child = command
        .arg("serve")
        .current_dir(&options.bundle)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .spawn()
        .map_err(failed)?;
    fs::write(options.bundle.join(PID_FILE), child.id().to_string()).map_err(failed)?;
    // Not waited for: it outlives us, and init reaps it.
    Ok(())
}

fn socket_path(options: &LaunchOptions) -> PathBuf {
    match &options.address {
        // Short whatever the names are: the path of a socket has at most 107 bytes.
        Some(address) => {
            let name = format!("{}/{}/{}", address.display(), options.namespace, options.id);
            Path::new(SOCKETS).join(hex::encode(Sha256::digest(name)))
        }
        None => {
            let name = format!("{}/{}", options.bundle.display(), options.id);
            let hash = hex::encode(Sha256::digest(name));
            crate::config::state_root().join("s").join(&hash[..32])
        }
    }
}

/// Clears up what the shim of `bundle` left if it is gone: its socket, its files. Its mounts, its microVM and
/// its taps went with its process.
pub fn delete(bundle: &Path, id: &str) -> Outcome<()> {
    check_id(id)?;
    if let Ok(address) = fs::read_to_string(bundle.join(ADDRESS_FILE))
        && let Some(path) = address.trim().strip_prefix("unix://")
        && std::os::unix::net::UnixStream::connect(path).is_err()
    {
        // Gone already, or never made.
        let _ = fs::remove_file(path);
    }
    for name in [ADDRESS_FILE, PID_FILE] {
        let _ = fs::remove_file(bundle.join(name));
    }
    Ok(())
}

/// The binary in its shim role; `arguments` are those after the program's name.
pub fn main(arguments: &[String]) -> ExitCode {
    let result = Arguments::parse(arguments).and_then(|arguments| match arguments.action.as_str() {
        "start" => start(&arguments),
        "delete" => delete_command(&arguments),
        "serve" => serve(&arguments),
        "" => Err(Failure::invalid("no action: start or delete")),
        other => Err(Failure::invalid(format!("unknown action {other:?}"))),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Best effort: whoever started us reads it, or nobody does.
            let _ = writeln!(io::stderr(), "{SHIM_NAME}: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Flags as Go's flag package writes them: one dash or two, the value apart or after `=`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    namespace: String,
    id: String,
    address: String,
    bundle: String,
    debug: bool,
    action: String,
}

impl Arguments {
    fn parse(arguments: &[String]) -> Outcome<Self> {
        let mut parsed = Self::default();
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                parsed.action = word.clone();
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if name == "debug" {
                parsed.debug = value.as_deref() != Some("false");
                continue;
            }
            let mut next = || {
                value
                    .clone()
                    .or_else(|| rest.next().cloned())
                    .ok_or_else(|| Failure::invalid(format!("flag -{name} has no value")))
            };
            match name {
                "namespace" => parsed.namespace = next()?,
                "id" => parsed.id = next()?,
                "address" => parsed.address = next()?,
                "bundle" => parsed.bundle = next()?,
                // Not needed: events go over ttrpc, the socket's path is our choice.
                "publish-binary" | "socket" => drop(next()?),
                _ => return Err(Failure::invalid(format!("unknown flag -{name}"))),
            }
        }
        Ok(parsed)
    }

    fn bundle(&self) -> Outcome<PathBuf> {
        if self.bundle.is_empty() {
            std::env::current_dir().map_err(|e| Failure::host("working directory", &e))
        } else {
            Ok(PathBuf::from(&self.bundle))
        }
    }
}

fn start(arguments: &Arguments) -> Outcome<()> {
    let bundle = arguments.bundle()?;
    let address = match sandbox_of(&bundle)? {
        // A further container of a pod: its shim is running.
        Some(sandbox) => {
            let file = bundle.with_file_name(&sandbox).join(ADDRESS_FILE);
            fs::read_to_string(&file).map_err(|e| Failure::host(file.display(), &e))?
        }
        None => {
            let options = LaunchOptions {
                id: arguments.id.clone(),
                namespace: arguments.namespace.clone(),
                bundle: bundle.clone(),
                address: Some(arguments.address.clone().into()),
                debug: arguments.debug,
            };
            format!("unix://{}", launch(&options)?.display())
        }
    };
    let file = bundle.join(ADDRESS_FILE);
    fs::write(&file, &address).map_err(|e| Failure::host(file.display(), &e))?;
    // containerd reads the address and nothing else.
    io::stdout().write_all(address.as_bytes()).map_err(|e| Failure::host("print the address", &e))
}

/// The sandbox a bundle's container belongs to, if it is not its own.
fn sandbox_of(bundle: &Path) -> Outcome<Option<String>> {
    let spec = service::read_spec(bundle)?;
    let all = spec.annotations().clone().unwrap_or_default();
    // Only who belongs where matters here; our own annotations are checked when the container is created.
    let role = all.into_iter().filter(|(name, _)| !name.starts_with("io.kiai.")).collect();
    match Annotations::parse(&role, &[])?.role {
        Role::Container { sandbox_id } => {
            check_id(&sandbox_id)?;
            Ok(Some(sandbox_id))
        }
        Role::Single | Role::Sandbox => Ok(None),
    }
}

fn delete_command(arguments: &Arguments) -> Outcome<()> {
    let bundle = arguments.bundle()?;
    delete(&bundle, &arguments.id)?;
    // Killed, as far as anybody knows.
    let response = DeleteResponse {
        exit_status: 137,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().map_err(|e| Failure::host("encode the answer", &e))?;
    io::stdout().write_all(&bytes).map_err(|e| Failure::host("print the answer", &e))
}

fn serve(arguments: &Arguments) -> Outcome<()> {
    let failed = |step: &'static str| move |e: io::Error| Failure::host(step, &e);
    // Before any thread: a namespace belongs to a thread and is inherited by those it starts.
    mount::own_namespace().map_err(failed("own mount namespace"))?;
    // Fails only for a session leader, which then is what we want to be.
    let _ = rustix::process::setsid();
    let listener =
        rustix::io::dup(rustix::stdio::stdin()).map_err(|e| failed("listening socket")(e.into()))?;
    let null = File::open("/dev/null").map_err(failed("/dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| failed("/dev/null")(e.into()))?;
    log(arguments.debug);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(failed("tokio runtime"))?;
    let result = runtime.block_on(run(arguments, UnixListener::from(listener)));
    if let Err(e) = &result {
        tracing::error!("{e}");
    }
    // Without waiting for threads in open(2) or for KVM to take its VM apart: the kernel does both at once.
    std::process::exit(i32::from(result.is_err()));
}

async fn run(arguments: &Arguments, listener: UnixListener) -> Outcome<()> {
    let service = Service::new(&arguments.namespace);
    let listener = Listener::try_from(listener).map_err(|e| Failure::host("listening socket", &e))?;
    let mut server = Server::new().add_listener(listener).register_service(task::services(&service));
    let signal = |kind| tokio::signal::unix::signal(kind).map_err(|e| Failure::host("signal handler", &e));
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    server.start().await.map_err(|e| Failure::internal(format!("serve: {}", chain(&e))))?;
    tokio::select! {
        () = service.stopped() => {}
        _ = terminate.recv() => {
            tracing::info!("asked to terminate");
            service.shutdown(true).await;
        }
    }
    // Lets the answer to the call that stopped us out, and containerd's last events.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), server.shutdown()).await;
    Ok(())
}

fn log(debug: bool) {
    let level = if debug { "debug" } else { "info" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("KIAI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    // Set already only in tests.
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Outcome<Arguments> {
        Arguments::parse(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_read_as_go_writes_them() {
        let words = "-namespace k8s.io --id=abc -address /run/c.sock -publish-binary /bin/c -debug start";
        let arguments = parse(words).unwrap();
        assert_eq!(
            arguments,
            Arguments {
                namespace: "k8s.io".into(),
                id: "abc".into(),
                address: "/run/c.sock".into(),
                debug: true,
                action: "start".into(),
                ..Default::default()
            }
        );
    }

    #[test]
    fn unknown_or_incomplete_flags_are_named() {
        assert!(parse("-frobnicate x start").unwrap_err().to_string().contains("-frobnicate"));
        assert!(parse("start -id").unwrap_err().to_string().contains("-id"));
    }
}
