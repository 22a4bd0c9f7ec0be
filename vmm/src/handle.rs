//! What can be asked of a microVM that was built.
//!
//! ```text
//!   build ──► Paused ──start/resume──► Running ──pause──► Paused
//!                │                        │
//!                └─────────stop───────────┴── guest ends ──► Stopped(Ending)
//! ```

/// How a microVM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset: its kernel panicked (`panic=-1`), or it rebooted.
    Reset,
    /// A vCPU shut down (triple fault).
    TripleFault,
    /// The hypervisor could not go on; the text names the vCPU and the exit.
    VcpuError(String),
    /// [`VmHandle::stop`] was called.
    Stopped,
}

/// A handle on a running microVM. Dropping the last one stops it.
#[derive(Clone)]
pub struct VmHandle {}

// The signatures to come (the coordinator implements them):
//
//   VmHandle::build(config: VmConfig) -> Result<VmHandle, BootError>       // Paused, devices attached
//   fn start(&self) -> Result<(), StateError>
//   fn pause(&self) / resume(&self) -> Result<(), StateError>
//   fn stop(&self)                                                        // idempotent, returns once stopped
//   fn wait(&self) -> Ending                                              // blocks until Stopped
//   fn console_tail(&self) -> String                                      // last 64 KiB of the guest's console
//   fn attach(&self, device: DeviceConfig) -> Result<Attached, AttachError>  // Attached { id, pci_path: String }
//   fn detach(&self, id: DeviceId) -> Result<(), DetachError>
//   fn state(&self) -> State
