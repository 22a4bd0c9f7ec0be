//! A microVM monitor as a library: the machine runs on threads of the calling process.
//!
//! What it must not know: OCI, containerd, images, networks beyond an open tap. It is handed open things
//! (kernel, disks, taps), never paths, and answers with typed results.
//!
//! Threads: one per vCPU that was made, one that idle devices share, one per device or queue pair that does I/O, all
//! started by whoever builds the machine, attaches or asks for vCPUs, and each confined. No async runtime here; every
//! method of [`VmHandle`] blocks for at most the work it names and may be called from any thread of the caller's.
//!
//! Reading order: [`config`] says what to build, [`handle`] what can be asked of it; then `machine` (builder,
//! attach), `boot`, `vcpu`, `kvm`.

pub mod config;
pub mod descriptors;
pub mod handle;

mod acpi;
mod boot;
mod console;
mod kvm;
mod layout;
mod machine;
mod memory;
mod probe;
mod saved;
mod seccomp;
mod vcpu;

pub use boot::LoadError;
pub use config::ConfigError;
pub use config::Contents;
pub use config::DeviceConfig;
pub use config::NamedFile;
pub use config::OpenFunction;
pub use config::RestoreConfig;
pub use config::VfioGroup;
pub use config::VmConfig;
pub use handle::Attached;
pub use handle::DeviceId;
pub use handle::Ended;
pub use handle::Ending;
pub use handle::MemorySizes;
pub use handle::Registers;
pub use handle::State;
pub use handle::VmHandle;
pub use kvm::KvmError;
pub use machine::AttachError;
pub use machine::BalloonError;
pub use machine::BootError;
pub use machine::DetachError;
pub use machine::MemoryRequestError;
pub use machine::PassError;
pub use machine::RestoreError;
pub use machine::SaveError;
pub use memory::MemoryError;
pub use probe::ProbeError;
pub use probe::probe;
pub use saved::StateError;
pub use vcpu::SetupError;
pub use vcpu::VcpuError;

/// The host's side of the guest's vsock ports, and the tap devices a network device is handed.
pub use kiai_devices::virtio::net;
pub use kiai_devices::virtio::vsock;
