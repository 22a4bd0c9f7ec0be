//! One sandbox: a microVM, the directory it shares with the host, the agent in it.
//!
//! ```text
//!   boot ──► running ──┬── destroy ──► ended
//!                      └── the guest dies ──► ended (reason and console in `sandbox-error.txt`)
//! ```
//! What it must not know: the Task service, standard streams of containers beyond handing out their ports.

mod boot;
mod network;
mod shared;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kiai_protocol::agent::Empty;
use kiai_protocol::ports;
use kiai_vmm::VmHandle;
use kiai_vmm::vsock::VsockPorts;
use tokio::sync::oneshot;
use tokio::sync::watch;

use crate::agent::Agent;
use crate::failure::Failure;
use crate::failure::Outcome;

pub use boot::boot;
pub use shared::RootMount;
pub use shared::SharedDirectory;
pub use shared::SharedError;

/// File in the bundle that says why a sandbox died.
pub const ERROR_FILE: &str = "sandbox-error.txt";

/// How long the guest may take to shut down in order.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// A running sandbox.
pub struct Sandbox {
    vm: VmHandle,
    ports: Arc<VsockPorts>,
    agent: Agent,
    shared: SharedDirectory,
    next_port: AtomicU32,
    /// We end it ourselves: its end is no news.
    ending: Arc<AtomicBool>,
    /// Why it ended, once it has.
    ended: watch::Receiver<Option<String>>,
}

/// A stream to come: the guest connects to `port` once it was told of it.
pub struct StreamPort {
    /// The port on the host.
    pub port: u32,
    ports: Arc<VsockPorts>,
    stream: oneshot::Receiver<UnixStream>,
}

impl Sandbox {
    /// The agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The shared directory.
    pub fn shared(&self) -> &SharedDirectory {
        &self.shared
    }

    /// Listens on a fresh port for one stream.
    pub fn stream_port(&self) -> Outcome<StreamPort> {
        let (sender, stream) = oneshot::channel();
        let sender = std::sync::Mutex::new(Some(sender));
        let accept = Box::new(move |stream: UnixStream| {
            // The first connection is the one; a guest that connects again is not heard.
            if let Some(sender) = sender.lock().ok().and_then(|mut sender| sender.take()) {
                let _ = sender.send(stream);
            }
        });
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        self.ports.listen(port, accept).map_err(|e| Failure::host("standard stream", &e))?;
        Ok(StreamPort { port, ports: self.ports.clone(), stream })
    }

    /// Resolves with the reason once the sandbox has ended.
    pub async fn ended(&self) -> String {
        reason(&mut self.ended.clone()).await
    }

    /// Runs a call to the agent, but not beyond the sandbox's end.
    pub async fn alive<T>(
        &self,
        call: impl Future<Output = containerd_shim_protos::ttrpc::Result<T>>,
    ) -> Outcome<T> {
        tokio::select! {
            result = call => result.map_err(Failure::from),
            reason = self.ended() => Err(Failure::internal(reason)),
        }
    }

    /// Ends it: in order if the agent answers in time, at once if not.
    pub async fn destroy(&self) {
        self.ending.store(true, Ordering::SeqCst);
        let request = Empty::new();
        let call = self.agent.service().destroy_sandbox(Agent::call(), &request);
        if tokio::time::timeout(SHUTDOWN, self.alive(call)).await.is_err() {
            tracing::warn!("the agent did not answer the request to shut down");
        }
        let vm = self.vm.clone();
        // Joining threads blocks; the runtime's own threads must not.
        let _ = tokio::task::spawn_blocking(move || vm.stop()).await;
    }
}

impl StreamPort {
    /// The stream, once the agent has answered the call that named the port.
    pub async fn accept(mut self) -> Outcome<tokio::net::UnixStream> {
        let stream = (&mut self.stream)
            .await
            .map_err(|_| Failure::internal("the agent did not connect a standard stream"))?;
        let convert = |stream: UnixStream| {
            stream.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(stream)
        };
        convert(stream).map_err(|e| Failure::host("standard stream", &e))
    }
}

impl Drop for StreamPort {
    fn drop(&mut self) {
        self.ports.unlisten(self.port);
    }
}

/// Tells whoever waits, and the file in the bundle, why the guest is gone.
fn watch_end(
    vm: VmHandle,
    bundle: &Path,
    ending: Arc<AtomicBool>,
) -> std::io::Result<watch::Receiver<Option<String>>> {
    let (sender, receiver) = watch::channel(None);
    let file: PathBuf = bundle.join(ERROR_FILE);
    std::thread::Builder::new().name("vm-end".to_owned()).spawn(move || {
        let how = vm.wait();
        let reason = format!("the sandbox ended: {how}");
        if !ending.load(Ordering::SeqCst) {
            let console = vm.console_tail();
            tracing::error!("{reason}");
            let text = format!("{reason}\nlast lines of the guest's console:\n{console}\n");
            if let Err(e) = std::fs::write(&file, text) {
                tracing::error!("{}: {e}", file.display());
            }
        }
        // Nobody may be waiting any more.
        let _ = sender.send(Some(reason));
    })?;
    Ok(receiver)
}

/// Resolves with the reason once there is one.
async fn reason(ended: &mut watch::Receiver<Option<String>>) -> String {
    match ended.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or_default(),
        Err(_) => "the sandbox is gone".to_owned(),
    }
}

/// First port for standard streams.
const fn first_port() -> AtomicU32 {
    AtomicU32::new(ports::FIRST_STREAM_PORT)
}
