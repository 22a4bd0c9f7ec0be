//! The agent in the guest, as a client: one ttrpc connection over an in-process vsock stream.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use containerd_shim_protos::ttrpc;
use kiai_protocol::service::AgentClient;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

/// A connection to the agent. Clones share it.
#[derive(Clone)]
pub struct Agent(AgentClient);

/// How long the agent may take for anything but a wait.
const DEADLINE: Duration = Duration::from_secs(60);

impl Agent {
    /// Speaks to the agent over `stream`, a connection to its port. Call it inside a tokio runtime.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        Ok(Self(AgentClient::new(Client::new(Socket::new(stream)))))
    }

    /// The service.
    pub fn service(&self) -> &AgentClient {
        &self.0
    }

    /// The context of an ordinary call: it ends with an error after a minute.
    pub fn call() -> Context {
        ttrpc::context::with_duration(DEADLINE)
    }

    /// The context of a call that lasts as long as a process does.
    pub fn wait() -> Context {
        ttrpc::context::Context::default()
    }
}
