//! A microVM monitor as a library: the machine runs on threads of the calling process.
//!
//! What it must not know: OCI, containerd, images, networks beyond an open tap. It is handed open things
//! (kernel, disks, taps), never paths, and answers with typed results.
//!
//! Threads: one per vCPU, one per active device that does I/O. No async runtime here; every method of
//! [`VmHandle`] blocks for at most the work it names and may be called from any thread.
//!
//! Reading order: [`config`] says what to build, [`handle`] what can be asked of it.

pub mod config;
pub mod handle;

pub use config::DeviceConfig;
pub use config::VmConfig;
pub use handle::Ending;
pub use handle::VmHandle;
