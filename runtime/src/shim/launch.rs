//! Launching a shim: this program again, with its listening socket as standard input.
//!
//! The socket is made here, so that its address is known at once; the shim reports on its standard output that it
//! serves, or the reason why it cannot.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use sha2::Digest;
use sha2::Sha256;

use super::ADDRESS_FILE;
use super::EVENTS_VARIABLE;
use super::LOG_FILE;
use super::PID_FILE;
use super::SHIM_NAME;
use crate::config::state_root;
use crate::failure::RpcError;
use crate::failure::RpcResult;
use crate::network::PortMapping;
use crate::plan::check_id;

/// The report of a shim that serves; any other text is the reason why it cannot.
pub(super) const SERVING: &str = "serving\n";

/// The options of a new shim.
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
    /// containerd's socket for events, if the environment does not have it.
    pub events: Option<String>,
    /// The shim logs debug messages.
    pub debug: bool,
    /// The configuration of the pod's runtime class; none for the default one.
    pub config: Option<PathBuf>,
    /// Ports of the host that the shim holds while it lives.
    pub ports: Vec<PortMapping>,
    /// Arguments with which the shim runs this program once its first container has ended; none for a container in the
    /// foreground.
    pub afterwards: Vec<String>,
}

/// Starts a shim and returns its socket once it serves. Leaves `address`, `shim.pid` and `shim.log` in the
/// bundle. Blocks for the time it takes this program to start.
pub fn launch(options: &LaunchOptions) -> RpcResult<PathBuf> {
    check_id(&options.id)?;
    let socket = socket_path(options);
    let failed = |step: &str, e: io::Error| RpcError::host(format!("{step} {}", socket.display()), &e);
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent).map_err(|e| failed("create the directory of", e))?;
    }
    let listener = match UnixListener::bind(&socket) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            // A killed shim leaves its socket behind; if a connection succeeds, the shim runs.
            if UnixStream::connect(&socket).is_ok() {
                return Err(RpcError::already_exists(format!("a shim of {} is running", options.id)));
            }
            fs::remove_file(&socket).map_err(|e| failed("remove", e))?;
            UnixListener::bind(&socket)
        }
        other => other,
    }
    .map_err(|e| failed("listen on", e))?;
    // Before the process is started, so that a later command that finds the bundle finds the socket, too.
    let file = options.bundle.join(ADDRESS_FILE);
    fs::write(&file, address(&socket))
        .map_err(|e| RpcError::host(file.display(), &e))
        .and_then(|()| spawn(options, listener))
        .inspect_err(|_| drop(fs::remove_file(&socket)))?;
    Ok(socket)
}

fn spawn(options: &LaunchOptions, listener: UnixListener) -> RpcResult<()> {
    let bundle = &options.bundle;
    let failed = |e: io::Error| RpcError::host(format!("start the shim in {}", bundle.display()), &e);
    let program = std::env::current_exe().map_err(|e| RpcError::host("find this program", &e))?;
    let log = File::options().append(true).create(true).open(bundle.join(LOG_FILE)).map_err(failed)?;
    let (mut says, told) = io::pipe().map_err(failed)?;
    let mut command = Command::new(program);
    command.arg0(SHIM_NAME).args(["-namespace", &options.namespace, "-id", &options.id]);
    if let Some(address) = &options.address {
        command.arg("-address").arg(address);
    }
    if let Some(events) = &options.events {
        command.env(EVENTS_VARIABLE, events);
    }
    if options.debug {
        command.arg("-debug");
    }
    if let Some(config) = &options.config {
        command.arg("-config").arg(config);
    }
    for port in &options.ports {
        command.args(["-hold", &port.to_string()]);
    }
    command.arg("serve");
    if !options.afterwards.is_empty() {
        command.arg("--").args(&options.afterwards);
    }
    command
        .current_dir(bundle)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::from(told))
        .stderr(Stdio::from(log));
    let mut child = command.spawn().map_err(failed)?;
    // The command holds copies of the pipe's ends: once they are closed, a shim that dies ends the read.
    drop(command);
    if let Err(e) = fs::write(bundle.join(PID_FILE), child.id().to_string()) {
        // Nobody would find it.
        let _ = child.kill().and_then(|()| child.wait());
        return Err(failed(e));
    }
    let mut word = String::new();
    let read = says.by_ref().take(64 << 10).read_to_string(&mut word);
    // Not waited for: the shim outlives this process, and init reaps it.
    match (word.as_str(), read) {
        (SERVING, _) => Ok(()),
        (_, Err(e)) => Err(failed(e)),
        ("", Ok(_)) => {
            let log = bundle.join(LOG_FILE);
            Err(RpcError::internal(format!("the shim ended before it served; see {}", log.display())))
        }
        (reason, Ok(_)) => Err(RpcError::internal(format!("the shim cannot serve: {}", reason.trim_end()))),
    }
}

/// A socket's address as containerd writes it.
pub(super) fn address(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// The path of the shim's socket, which is short whatever the names are: it has at most 107 bytes.
pub(super) fn socket_path(options: &LaunchOptions) -> PathBuf {
    // Two containerds, or two state directories, may use the same names.
    let whose = options.address.as_deref().unwrap_or(&options.bundle);
    let name = format!("{}/{}/{}", whose.display(), options.namespace, options.id);
    let hash = hex::encode(Sha256::digest(name));
    state_root().join("s").join(&hash[..32])
}
