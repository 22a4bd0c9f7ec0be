//! virtio 1.2 devices over a transport core that knows no PCI.

pub mod device;
pub mod vsock;
