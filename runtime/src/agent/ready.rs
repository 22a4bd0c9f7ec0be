//! Waiting for the agent, which connects once it serves; the host never polls.

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

/// A listener on the port to which the agent connects once it serves. To be made before the guest runs.
pub struct Ready {
    ports: Arc<VsockPorts>,
    called: oneshot::Receiver<UnixStream>,
}

/// Why the agent is not ready.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// The port is taken.
    #[error(transparent)]
    Port(#[from] PortInUse),
    /// The vsock device was removed, or the connection closed early.
    #[error("the agent's connection closed before it was ready")]
    Stream(#[from] io::Error),
    /// The agent is of another version, or is not Kiai's agent.
    #[error(
        "the guest's agent uses another version of the protocol ({0:02x?}); use the initrd of this release"
    )]
    Version([u8; 8]),
}

impl Ready {
    /// Starts to listen.
    pub fn listen(ports: &Arc<VsockPorts>) -> Result<Self, ReadyError> {
        let (call, called) = oneshot::channel();
        let call = Mutex::new(Some(call));
        ports.listen(
            READY_PORT,
            Box::new(move |stream| {
                if let Some(call) = call.lock().take() {
                    // The receiver is dropped if the boot failed.
                    let _ = call.send(stream);
                }
            }),
        )?;
        Ok(Self { ports: ports.clone(), called })
    }

    /// Returns once the agent has connected and sent the right message.
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
