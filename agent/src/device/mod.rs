//! Devices of the guest: found by what the host knows of them, then written into the container's spec.
//!
//! Start with [`wait_for()`], which waits for the node; [`rewrite()`] is pure. Nothing here makes a node or
//! enforces a rule: the nodes are made and the rules applied by libcontainer from the rewritten spec.

mod locate;
mod rewrite;

pub use locate::{DeviceKind, LocateError, Node, pci_function, wait_for, wait_for_virtio_fs};
pub use rewrite::{LocatedDevice, RewriteError, rewrite};
