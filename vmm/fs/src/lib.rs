//! virtio-fs (virtio 1.2 §5.11): a directory of the host, shared with the guest over FUSE.
//!
//! The FUSE server is `fuse-backend-rs`, which is tied to an older `vm-memory` and `virtio-queue` than the
//! rest of the machine. This crate is the only one that names the old versions; what it shows to the outside
//! is one [`Fs`], a [`VirtioDevice`](kiai_devices::virtio::device::VirtioDevice) like any other.
//!
//! ```text
//!   Fs (device.rs) ── its thread (service.rs) ── Requests (requests.rs) ── Share (share/) ── the host's files
//!    today's vm-memory │ view.rs │ the older vm-memory
//! ```
//!
//! What must hold, whatever the guest sends: no file outside the directory is opened, looked at or changed; no
//! special file (fifo, socket, device node) is ever opened; memory, descriptors and time spent on one request
//! are bounded; a malformed descriptor chain stops the device and a malformed FUSE message is answered with an
//! error. The guest's kernel, not this server, decides which of its processes may do what inside the share.

mod device;
mod identity;
mod requests;
mod service;
mod share;
#[cfg(feature = "test-util")]
pub mod testing;
mod view;

pub use device::Fs;
pub use device::FsError;
