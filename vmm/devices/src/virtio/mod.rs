//! virtio 1.2 devices over a transport core that knows no PCI.

pub mod block;
pub mod device;
pub mod queue;
pub mod rng;
pub mod spec;
pub mod transport;
pub mod vsock;
pub mod worker;
