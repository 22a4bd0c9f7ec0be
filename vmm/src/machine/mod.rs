//! The machine: memory, buses, vCPUs and devices, owned in one place.

mod attach;
mod builder;
mod memory;
mod passthrough;
mod power;
mod save;
mod threads;

use std::collections::BTreeMap;
use std::sync::Arc;

use kiai_devices::pci::segment::PciSegment;
use kiai_devices::platform::GuestMemory;
use kiai_devices::platform::Platform;
use kiai_devices::virtio::balloon::BalloonControl;
use kiai_devices::virtio::mem::MemControl;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;

pub use attach::AttachError;
pub use attach::DetachError;
pub use builder::BootError;
pub use memory::BalloonError;
pub use memory::MemoryRequestError;
pub use passthrough::PassError;
pub use save::RestoreError;
pub use save::SaveError;

use crate::console::Console;
use crate::handle::DeviceId;
use crate::handle::Ended;
use crate::handle::Ending;
use crate::handle::Registers;
use crate::handle::State;
use crate::memory::HotplugRam;
use crate::memory::Ram;
use crate::memory::Reservation;
use crate::vcpu::Control;
use crate::vcpu::VcpuError;
use crate::vcpu::Vcpus;

/// A built machine. Field order is drop order: the vCPUs end first, then devices stop, then memory goes.
pub(crate) struct Machine {
    vcpus: Vcpus,
    control: Arc<Control>,
    /// All of them, the one for memory included.
    devices: Mutex<BTreeMap<DeviceId, attach::Slot>>,
    segment: Arc<PciSegment>,
    platform: Platform,
    threads: Arc<threads::IoThreads>,
    passthrough: passthrough::Passthrough,
    fixed: builder::Fixed,
    console: Console,
    memory: GuestMemory,
    ram: Arc<Ram>,
    sizes: builder::Sizes,
    /// Where memory can be plugged, if there can be more than at boot.
    plugging: Option<Arc<HotplugRam>>,
    /// The host's end of the device that plugs it.
    hotplug: Option<MemControl>,
    /// Of the balloon that was attached last, if one was.
    balloon: Mutex<Option<BalloonControl>>,
    vm: Arc<VmFd>,
    /// Where the memory that it booted with has no page, there are zeroes.
    is_new: bool,
    /// Last: everything above may point into it.
    _boot_ram: Arc<Reservation>,
}

impl Machine {
    pub(crate) fn resume(&self) -> Result<(), Ended> {
        self.alive(self.control.resume())
    }

    pub(crate) fn pause(&self) -> Result<(), Ended> {
        self.alive(self.control.pause())
    }

    pub(crate) fn stop(&self) {
        // What a vCPU hangs in may hold what a device's removal waits for.
        if self.vcpus.stop() {
            self.remove_devices();
        }
    }

    pub(crate) fn create_vcpus(&self, count: u8) -> Result<(), VcpuError> {
        self.vcpus.grow(count)
    }

    pub(crate) fn registers(&self, vcpu: u8) -> Result<Registers, VcpuError> {
        self.vcpus.registers(vcpu)
    }

    pub(crate) fn set_registers(&self, vcpu: u8, registers: Registers) -> Result<(), VcpuError> {
        self.vcpus.set_registers(vcpu, registers)
    }

    pub(crate) fn wait(&self) -> Ending {
        self.control.wait()
    }

    pub(crate) fn state(&self) -> State {
        match self.control.status() {
            Ok(true) => State::Running,
            Ok(false) => State::Paused,
            Err(ending) => State::Stopped(ending),
        }
    }

    pub(crate) fn console_tail(&self) -> String {
        self.console.tail()
    }

    fn alive(&self, alive: bool) -> Result<(), Ended> {
        match (alive, self.control.status()) {
            (false, Err(ending)) => Err(Ended(ending)),
            _ => Ok(()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}
