//! Devices of the guest: found by what the host knows of them, then written into the container's spec.
//!
//! Start with [`locate()`], which waits for the node; [`rewrite()`] is pure. A
//! PCI function of the host has any number of nodes: [`wait_for_nodes`] finds them, [`admit()`] writes them. Nothing here makes a node or
//! enforces a rule: the nodes are made and the rules applied by libcontainer from the rewritten spec.

mod admit;
mod environment;
mod function;
mod locate;
mod rewrite;

pub use admit::{AdmitError, HostGroup, admit, withdraw};
pub use environment::{PciAddresses, translate};
pub use function::{address, give_to_vfio, vfio_container, wait_for_nodes};
pub use locate::{DeviceKind, LocateError, Node, pci_function, wait_for, wait_for_virtio_fs};
pub use rewrite::{LocatedDevice, RewriteError, rewrite};
