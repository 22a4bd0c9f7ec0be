//! Devices of the guest: found by what the host knows of them, then written into the container's spec.
//!
//! Start with [`wait_for()`], which waits for a disk's node, and [`wait_for_nodes()`], which does for those of a PCI
//! function. What the rows of a spec then become is [`HostRows`]; [`rewrite()`] writes it into the spec, [`derive()`]
//! makes the rules, [`rule`] says what rules mean and [`filter`] makes them a program for the kernel: all of that is
//! pure. Before a device goes, [`used()`] says whether it can. Nothing here makes a node or loads a program:
//! libcontainer and `cgroup` do.

mod all;
mod environment;
pub mod filter;
mod function;
mod locate;
mod rewrite;
mod rows;
pub mod rule;
mod standard;
mod users;

pub use all::with_all;
pub use environment::PciAddresses;
pub use environment::translate_process;
pub use function::address;
pub use function::give_to_vfio;
pub use function::vfio_container;
pub use function::wait_for_nodes;
pub use locate::DeviceKind;
pub use locate::LocateError;
pub use locate::Node;
pub use locate::pci_function;
pub use locate::wait_for;
pub use locate::wait_for_virtio_fs;
pub use rewrite::RewriteError;
pub use rewrite::derive;
pub use rewrite::derive_attached;
pub use rewrite::entries;
pub use rewrite::rewrite;
pub use rewrite::rules;
pub use rows::AssignedDevice;
pub use rows::GuestNode;
pub use rows::HostRows;
pub use rows::Nodes;
pub use rows::Origin;
pub use rule::Identity;
pub use users::used;
