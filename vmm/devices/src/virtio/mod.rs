//! virtio 1.2 devices over a transport core that knows no PCI.

pub mod balloon;
pub mod block;
pub(crate) mod buffers;
pub mod console;
pub mod device;
pub mod mem;
pub mod net;
pub mod queue;
pub mod rng;
pub mod spec;
pub mod transport;
pub mod vsock;
