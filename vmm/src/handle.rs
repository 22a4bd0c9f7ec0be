//! What can be asked of a microVM that was built.
//!
//! ```text
//!   build ──► Paused ──resume──► Running ──pause──► Paused
//!                │                  │
//!                └──────stop────────┴── guest ends ──► Stopped(Ending)
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::config::DeviceConfig;
use crate::config::RestoreConfig;
use crate::config::VmConfig;
use crate::machine::AttachError;
use crate::machine::BalloonError;
use crate::machine::BootError;
use crate::machine::DetachError;
use crate::machine::Machine;
use crate::machine::MemoryRequestError;
use crate::machine::RestoreError;
use crate::machine::SaveError;
use crate::vcpu::VcpuError;

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

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset (kernel panic or reboot)"),
            Self::TripleFault => f.write_str("the guest's CPU shut down (triple fault)"),
            Self::VcpuError(reason) => f.write_str(reason),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// Where a microVM is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Built or paused: no vCPU is in the guest.
    Paused,
    /// vCPUs run.
    Running,
    /// Over.
    Stopped(Ending),
}

/// The machine is over, so nothing can be asked of it.
#[derive(Debug, thiserror::Error)]
#[error("the microVM has ended: {0}")]
pub struct Ended(pub Ending);

/// A device that was attached, for [`VmHandle::detach`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub(crate) u8);

/// Where an attached device is, for the agent to find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Names the device from here on.
    pub id: DeviceId,
    /// PCI path from the root bus: "SS.F" in hex.
    pub pci_path: String,
}

/// General registers of a vCPU, as KVM has them.
pub use kvm_bindings::kvm_regs as Registers;

/// A guest's memory, MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySizes {
    /// What it booted with: the least.
    pub boot: u32,
    /// What it is to have.
    pub requested: u32,
    /// What it has.
    pub plugged: u32,
    /// What it can have.
    pub most: u32,
}

/// A handle on a microVM. Clones name the same machine; dropping the last one stops it.
#[derive(Clone)]
pub struct VmHandle(Arc<Machine>);

impl VmHandle {
    /// Builds a machine, paused, its devices attached. Blocks for the time it takes to load the kernel.
    /// On an error nothing is left behind.
    pub fn build(config: VmConfig) -> Result<Self, BootError> {
        Ok(Self(Arc::new(Machine::build(config)?)))
    }

    /// Lets the guest run.
    pub fn resume(&self) -> Result<(), Ended> {
        self.0.resume()
    }

    /// Returns once no vCPU is in the guest. Devices keep answering what was submitted.
    pub fn pause(&self) -> Result<(), Ended> {
        self.0.pause()
    }

    /// Writes the whole machine: its state, and its memory into a file of its own, which is mapped when it is restored
    /// ([`VmHandle::restore`]). It is paused for as long as that takes, and goes on as it was. Streams of vsock go on
    /// here alone. Refused, before anything is paused, with a function of the host's, a directory that the guest has
    /// mounted, or memory of 2 MiB pages. No size may be asked for and nothing attached meanwhile.
    pub fn save(&self, state: &mut dyn std::io::Write, memory: &std::fs::File) -> Result<(), SaveError> {
        self.0.save(state, memory)
    }

    /// A machine that was saved, paused, where it was: in another process, or beside the one that was saved. Whatever
    /// the guest has for its own (addresses, secrets, the time) is for the caller to give it anew.
    pub fn restore(config: RestoreConfig) -> Result<Self, RestoreError> {
        Ok(Self(Arc::new(Machine::restore(config)?)))
    }

    /// Has at least `count` vCPUs there for the guest to bring online, which finds all that there can be in its
    /// tables from the start. To be called before it does: it waits ten seconds for a CPU that is not there.
    pub fn create_vcpus(&self, count: u8) -> Result<(), VcpuError> {
        self.0.create_vcpus(count)
    }

    /// The general registers of a vCPU, which is taken out of the guest for as long as that takes.
    pub fn registers(&self, vcpu: u8) -> Result<Registers, VcpuError> {
        self.0.registers(vcpu)
    }

    /// Changes them.
    pub fn set_registers(&self, vcpu: u8, registers: Registers) -> Result<(), VcpuError> {
        self.0.set_registers(vcpu, registers)
    }

    /// Ends the machine and returns once no thread of it touches the guest any more. One that hangs in the
    /// host's kernel is waited for ten seconds, and keeps what it can reach. Idempotent.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Blocks until the machine has ended, and says how. Any number of threads may wait.
    pub fn wait(&self) -> Ending {
        self.0.wait()
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.0.state()
    }

    /// The last 64 KiB of the guest's console, also after its end.
    pub fn console_tail(&self) -> String {
        self.0.console_tail()
    }

    /// Puts a device on the bus, before the first [`VmHandle::resume`] or later. A running guest sees it when
    /// the agent rescans. On an error the machine is as it was.
    pub fn attach(&self, device: DeviceConfig) -> Result<Attached, AttachError> {
        self.0.attach(device)
    }

    /// Takes a device off the bus. The guest must have let go of it before (the agent's `RemovePci`): what it
    /// still reads there is all ones.
    pub fn detach(&self, id: DeviceId) -> Result<(), DetachError> {
        self.0.detach(id)
    }

    /// How much memory the guest has, and how much it is to have.
    pub fn memory(&self) -> MemorySizes {
        self.0.memory()
    }

    /// Asks the guest to have `mib` of memory, more or less than now, rounded up to a block (2 MiB, or 1/16384 of
    /// what can be plugged). It plugs and unplugs at its own pace, and unplugs what it can spare: see
    /// [`VmHandle::await_memory`]. May be asked of a machine that is not running yet.
    pub fn request_memory(&self, mib: u32) -> Result<(), MemoryRequestError> {
        self.0.request_memory(mib)
    }

    /// Blocks until the guest has what it is to have, the machine is over, or `patience` ends; says how much it
    /// has then.
    pub fn await_memory(&self, patience: Duration) -> MemorySizes {
        self.0.await_memory(patience)
    }

    /// Asks the guest to put `bytes` of the memory it has free into its balloon (virtio 1.2 §5.5), more or fewer
    /// than now: the host has them back until the guest takes them out again, which it may do at any time rather
    /// than run out of memory. May block while guest RAM is being pinned for a device.
    pub fn request_balloon(&self, bytes: u64) -> Result<(), BalloonError> {
        self.0.request_balloon(bytes)
    }

    /// Blocks until the balloon has the size it is to have, or the guest changes it the other way, the machine is
    /// over, or `patience` ends; says how many bytes it has then.
    pub fn await_balloon(&self, patience: Duration) -> u64 {
        self.0.await_balloon(patience)
    }
}
