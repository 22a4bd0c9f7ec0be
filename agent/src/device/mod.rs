//! Devices of the guest: found by their locators, then written into the container's spec.
//!
//! Start with [`wait_for()`], which waits for a disk's node, and [`wait_for_nodes()`], which waits for those of a PCI
//! function. [`HostEntries`] maps the spec's entries to nodes of the guest; [`rewrite()`] writes these into the spec,
//! [`derive()`] derives the guest's rules, [`rule`] defines the meaning of rules and [`filter`] compiles them into a
//! BPF program: all of that is pure. [`used()`] finds devices that are in use and so cannot be unplugged. No code
//! here makes a node or loads a program: libcontainer and `cgroup` do.

mod all;
mod entries;
mod environment;
pub mod filter;
mod function;
mod locate;
mod rewrite;
pub mod rule;
mod standard;
mod users;

pub use all::with_all;
pub use entries::AssignedDevice;
pub use entries::GuestNode;
pub use entries::HostEntries;
pub use entries::Nodes;
pub use entries::Origin;
pub use environment::PciAddresses;
pub use environment::translate_process;
pub use function::address;
pub use function::bind_to_vfio;
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
pub use rewrite::derive_plugged;
pub use rewrite::entries;
pub use rewrite::rewrite;
pub use rewrite::rules;
pub use rule::Identity;
pub use users::used;
