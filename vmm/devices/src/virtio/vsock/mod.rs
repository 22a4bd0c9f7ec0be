//! virtio-vsock (virtio 1.2 §5.10) with the host's side inside this process.
//!
//! Each connection is one end of a stream socket pair: the caller gets the other end and uses it like any
//! socket (half-close is end of file, a full buffer is back-pressure through vsock credit).

use std::os::unix::net::UnixStream;

/// The host's ports. Shared between the device and the code that listens and connects.
pub struct VsockPorts {}

// The signatures to come:
//
//   VsockPorts::new() -> Arc<VsockPorts>
//   fn listen(&self, port: u32, accept: Box<dyn Fn(UnixStream) + Send + Sync>) -> Result<(), PortInUse>
//        // `accept` is called on the device's thread for each connection the guest opens to `port`; must not block
//   fn unlisten(&self, port: u32)
//   fn connect(&self, port: u32) -> io::Result<UnixStream>
//        // asks the guest for a connection at once; bytes written are kept until it is accepted; a refusal is
//        // seen as end of file / reset on the stream
//   impl VirtioDevice for Vsock; Vsock::new(cid: u64, ports: Arc<VsockPorts>)
#[doc(hidden)]
pub type Stream = UnixStream;
