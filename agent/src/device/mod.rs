//! Devices of the guest: found by what the host knows of them, then written into the container's spec.
//!
//! Start with [`wait_for()`], which waits for the node; [`rewrite()`] writes it into the spec, [`filter`] makes
//! the spec's rules a program for the kernel, and [`rule`] says what they mean: all three are pure. A PCI
//! function of the host has any number of nodes: [`wait_for_nodes`] finds them, [`admit()`] writes them; before a
//! device goes, [`used()`] says whether it can. Nothing
//! here makes a node or loads a program: libcontainer and `cgroup` do.

mod admit;
mod all;
mod environment;
pub mod filter;
mod function;
mod locate;
mod rewrite;
pub mod rule;
mod users;

pub use admit::{AdmitError, HostGroup, admit, withdraw};
pub use all::with_all;
pub use environment::{PciAddresses, translate};
pub use function::{address, give_to_vfio, vfio_container, wait_for_nodes};
pub use locate::{DeviceKind, LocateError, Node, pci_function, wait_for, wait_for_virtio_fs};
pub use rewrite::{LocatedDevice, RewriteError, rewrite};
pub use users::used;
