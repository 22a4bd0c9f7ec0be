//! Waiting for the agent: it calls when it serves, the host never asks.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kiai_protocol::ports::READY_MAGIC;
use kiai_protocol::ports::READY_PORT;
use kiai_vmm::vsock::PortInUse;
use kiai_vmm::vsock::VsockPorts;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

/// A listener on the port the agent calls once it serves. To be made before the guest runs.
pub struct Ready {
    ports: Arc<VsockPorts>,
    called: oneshot::Receiver<UnixStream>,
}

/// The agent's call was none.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// The port is taken.
    #[error(transparent)]
    Port(#[from] PortInUse),
    /// The device went away, or the stream ended early.
    #[error("the agent's call broke off")]
    Stream(#[from] io::Error),
    /// An initrd of another version, or something else altogether.
    #[error(
        "the guest's agent speaks another version of the protocol ({0:02x?}): is the initrd of this release?"
    )]
    Version([u8; 8]),
}

impl Ready {
    /// Listens.
    pub fn listen(ports: &Arc<VsockPorts>) -> Result<Self, ReadyError> {
        let (call, called) = oneshot::channel();
        let call = Mutex::new(Some(call));
        ports.listen(
            READY_PORT,
            Box::new(move |stream| {
                if let Some(call) = call.lock().take() {
                    // Nobody waits any more when the boot was given up.
                    let _ = call.send(stream);
                }
            }),
        )?;
        Ok(Self { ports: ports.clone(), called })
    }

    /// Returns once the agent has called and said what it should.
    pub async fn wait(mut self) -> Result<(), ReadyError> {
        let gone = |_| io::Error::from(io::ErrorKind::ConnectionAborted);
        let stream = (&mut self.called).await.map_err(gone)?;
        stream.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let mut said = [0; READY_MAGIC.len()];
        stream.read_exact(&mut said).await?;
        if said == *READY_MAGIC { Ok(()) } else { Err(ReadyError::Version(said)) }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.ports.unlisten(READY_PORT);
    }
}
