//! A machine as two files, its state and its memory, and another machine that goes on from them.
//!
//! ```text
//!   save:     ask each device ─► vCPUs park ─► devices pause ─► state, memory ─► devices and vCPUs go on
//!   restore:  memory mapped ─► KVM, I/O APIC, clock ─► vCPUs (parked) ─► devices, memory that was plugged first
//! ```
//! What belongs to the host comes from the caller: the files of disks, the directory, the taps. Streams of vsock do not
//! come along, of which the guest is told. Nothing the guest thinks secret or its own changes here: that two machines
//! go on from one state is its agent's to know.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kiai_devices::io_thread::Hung;
use kiai_devices::pci::segment::InsertError;
use kiai_devices::virtio::device::VirtioDevice;
use kiai_devices::virtio::transport::pci::VirtioPciFunction;
use kiai_devices::virtio::transport::state;
use kiai_devices::virtio::transport::state::FunctionState;
use kvm_bindings::kvm_clock_data;
use vm_memory::GuestAddressSpace;

use super::AttachError;
use super::BootError;
use super::Machine;
use super::attach::Kind;
use super::attach::Slot;
use super::builder::Parts;
use super::builder::Sizes;
use super::builder::with_kvm;
use crate::config::Contents;
use crate::config::DeviceConfig;
use crate::config::RestoreConfig;
use crate::console::Console;
use crate::handle::DeviceId;
use crate::handle::Ended;
use crate::kvm::KvmError;
use crate::memory;
use crate::saved;
use crate::saved::MachineState;
use crate::saved::StateError;
use crate::vcpu;
use crate::vcpu::VcpuError;

/// Device id of virtio-mem (virtio 1.2 §5.15), which is the machine's own.
const MEMORY: u16 = 24;
/// At the end of the memory's file, in a page of its own, is which state it belongs to.
const PAGE: u64 = 4096;

/// Why a machine could not be saved. It goes on as before.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The machine is over.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// A device cannot be had by another machine as it is.
    #[error("the device in slot {slot:02x} cannot be saved: {reason}")]
    Device {
        /// On the PCI bus.
        slot: u8,
        /// Why.
        reason: String,
    },
    /// Its memory comes from the host's pool of huge pages, which no other machine could share.
    #[error("memory of 2 MiB pages from the host's pool cannot be saved")]
    HugePages,
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A file.
    #[error("write {what}")]
    File {
        /// Which.
        what: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Why a machine could not be restored; nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file of the state.
    #[error("saved state {name}")]
    State {
        /// The file.
        name: String,
        /// What is wrong with it.
        #[source]
        source: StateError,
    },
    /// A file cannot be read.
    #[error("read {name}")]
    File {
        /// The file.
        name: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The file of the memory is another machine's, or has been cut short.
    #[error("saved memory {name} does not belong to the state")]
    Memory {
        /// The file.
        name: String,
    },
    /// The machine had other devices.
    #[error("{found} devices for a microVM that was saved with {wanted}")]
    Devices {
        /// Given.
        found: usize,
        /// Saved.
        wanted: usize,
    },
    /// A device does not go on.
    #[error("the device in slot {slot:02x}")]
    Device {
        /// On the PCI bus.
        slot: u8,
        /// The reason.
        #[source]
        source: DeviceError,
    },
    /// The rest of the machine.
    #[error(transparent)]
    Boot(#[from] BootError),
}

/// Why a device does not go on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It could not be made.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// It is not on the bus.
    #[error(transparent)]
    Bus(#[from] InsertError),
    /// It has no use for the state.
    #[error(transparent)]
    State(#[from] state::RestoreError),
    /// Functions of the host are never saved.
    #[error("it is a function of the host's")]
    Passthrough,
}

/// Devices that were paused; they go on when this is dropped.
struct Paused(Vec<Arc<VirtioPciFunction>>);

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.iter().for_each(|function| function.resume());
    }
}

impl Machine {
    pub(crate) fn save(&self, state: &mut dyn Write, image: &File) -> Result<(), SaveError> {
        let devices = self.devices.lock();
        let functions: Vec<(DeviceId, Option<Arc<VirtioPciFunction>>)> =
            devices.iter().map(|(&id, slot)| (id, slot.function.clone())).collect();
        let refused = |slot: DeviceId, reason: &dyn std::fmt::Display| SaveError::Device {
            slot: slot.0,
            reason: reason.to_string(),
        };
        if self.sizes.huge_pages {
            return Err(SaveError::HugePages);
        }
        for (slot, function) in &functions {
            let function = function.as_ref();
            let function = function.ok_or_else(|| refused(*slot, &"it is a function of the host's"))?;
            function.unsaved().map_or(Ok(()), |reason| Err(refused(*slot, &reason)))?;
        }
        let was_running = self.control.status().map_err(Ended)?;
        self.pause()?;
        let saved = self.save_paused(&functions, &refused, state, image);
        if was_running {
            self.resume()?;
        }
        saved
    }

    /// No vCPU runs.
    fn save_paused(
        &self,
        functions: &[(DeviceId, Option<Arc<VirtioPciFunction>>)],
        refused: &dyn Fn(DeviceId, &dyn std::fmt::Display) -> SaveError,
        state: &mut dyn Write,
        image: &File,
    ) -> Result<(), SaveError> {
        let ours = functions.iter().filter_map(|(slot, function)| Some((*slot, function.clone()?)));
        let mut paused = Paused(Vec::new());
        for (slot, function) in ours.clone() {
            function.pause().map_err(|hung: Hung| refused(slot, &hung))?;
            paused.0.push(function);
        }
        let devices = ours.map(|(slot, function)| {
            let state = function.save().map_err(|reason| refused(slot, &reason))?;
            Ok::<_, SaveError>((slot.0, state))
        });
        let devices = devices.collect::<Result<_, _>>()?;
        let mut id = [0; 16];
        let file = |what| move |source: io::Error| SaveError::File { what, source };
        rustix::rand::getrandom(&mut id[..], rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| file("the state")(errno.into()))?;
        let all = MachineState {
            id,
            memory_mib: self.sizes.memory_mib,
            max_memory_mib: self.sizes.max_memory_mib,
            max_vcpus: self.sizes.max_vcpus,
            clock: self.vm.get_clock().map_err(KvmError::at("get the clock"))?,
            tsc: vcpu::host_tsc(),
            vcpus: self.vcpus.save()?,
            ioapic: self.fixed.ioapic.save(),
            serial: self.fixed.serial.save(),
            devices,
        };
        self.write_memory(image, &id).map_err(file("the memory"))?;
        state.write_all(&saved::encode(&all)).map_err(file("the state"))
    }

    fn write_memory(&self, image: &File, id: &[u8; 16]) -> io::Result<()> {
        let layout = Layout::of(self.sizes);
        let plugged = self.plugging.as_ref().map(|plugging| plugging.region().address);
        let mut offset = 0;
        let parts = self.ram.pieces().into_iter().map(|(guest, host, length)| {
            let at = match plugged.filter(|&start| guest >= start) {
                Some(start) => layout.plugged + (guest - start),
                None => offset,
            };
            offset = at + length;
            memory::Part { guest, host, length, offset: at, anonymous: self.is_new }
        });
        let parts: Vec<_> = parts.collect();
        memory::write_image(&self.memory.memory(), &parts, image, layout.end + PAGE)?;
        image.write_all_at(id, layout.end)
    }

    pub(crate) fn restore(config: RestoreConfig) -> Result<Self, RestoreError> {
        let RestoreConfig { state, memory: image, contents, console, devices } = config;
        let file = |name: &str| {
            let name = name.to_owned();
            move |source| RestoreError::File { name, source }
        };
        let bytes = read_all(&state.file).map_err(file(&state.name))?;
        let saved = saved::decode(&bytes)
            .map_err(|source| RestoreError::State { name: state.name.clone(), source })?;
        let sizes = Sizes {
            memory_mib: saved.memory_mib,
            max_memory_mib: saved.max_memory_mib,
            max_vcpus: saved.max_vcpus,
            huge_pages: false,
        };
        check(&saved, sizes).map_err(|source| RestoreError::State { name: state.name.clone(), source })?;
        let layout = Layout::of(sizes);
        if !layout.is_of(&image.file, &saved.id).map_err(file(&image.name))? {
            return Err(RestoreError::Memory { name: image.name });
        }
        let ours = saved.devices.iter().filter(|(_, state)| state.device_id != MEMORY).count();
        if ours != devices.len() {
            return Err(RestoreError::Devices { found: devices.len(), wanted: ours });
        }
        let image = Arc::new(image.file);
        let ((kvm, vm), ram) = with_kvm(|| memory::restore(sizes.memory_mib, image.clone(), contents))?;
        let ram = ram.map_err(BootError::from)?;
        let console = Console::new(console);
        let parts = Parts::new(vm.clone(), sizes, ram, console, Some(&saved.serial))?;
        let clock = kvm_clock_data { clock: saved.clock.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(KvmError::at("set the clock")).map_err(BootError::from)?;
        if !parts.fixed.ioapic.restore(&saved.ioapic) {
            return Err(RestoreError::State { name: state.name, source: StateError::Contents });
        }
        let maker = parts.maker(&kvm)?;
        let vcpus = vcpu::Vcpus::restore(
            maker,
            parts.control.clone(),
            parts.buses.clone(),
            (&saved.vcpus, saved.tsc),
        )
        .map_err(BootError::from)?;
        let mut machine = parts.assemble(vcpus);
        machine.is_new = contents == Contents::Copied;
        machine.restore_devices(&saved, devices, &image, layout.plugged)?;
        Ok(machine)
    }

    /// Memory comes first: the others' queues may be in it.
    fn restore_devices(
        &mut self,
        saved: &MachineState,
        devices: Vec<DeviceConfig>,
        image: &Arc<File>,
        plugged: u64,
    ) -> Result<(), RestoreError> {
        let (memory, others): (Vec<_>, Vec<_>) =
            saved.devices.iter().partition(|(_, state)| state.device_id == MEMORY);
        for (slot, state) in memory {
            let slot = *slot;
            let failed = |source| RestoreError::Device { slot, source };
            let other = || failed(DeviceError::State(state::RestoreError::Other));
            let device = self.hotplug_device().ok_or_else(other)?;
            let plugging = self.plugging.clone().ok_or_else(other)?;
            plugging.set_saved(Some((image.clone(), plugged)));
            let restored = self.restore_device(slot, Kind::Memory, device, state);
            plugging.set_saved(None);
            restored.map_err(failed)?;
        }
        for ((slot, state), config) in others.into_iter().zip(devices) {
            let kind = Kind::of(&config);
            let device = match config {
                DeviceConfig::Vfio { .. } => Err(DeviceError::Passthrough),
                config => self.device(config).map_err(DeviceError::from),
            };
            device
                .and_then(|device| self.restore_device(*slot, kind, device, state))
                .map_err(|source| RestoreError::Device { slot: *slot, source })?;
        }
        Ok(())
    }

    fn restore_device(
        &self,
        slot: u8,
        kind: Kind,
        device: Box<dyn VirtioDevice>,
        state: &FunctionState,
    ) -> Result<(), DeviceError> {
        let function = self.virtio(device)?;
        self.segment
            .restore(slot, function.clone(), || function.restore(state).map_err(DeviceError::from))?;
        self.devices.lock().insert(DeviceId(slot), Slot { kind, function: Some(function) });
        Ok(())
    }
}

/// Where what is in the file of the memory.
struct Layout {
    /// Memory that was plugged.
    plugged: u64,
    /// Which state it belongs to.
    end: u64,
}

impl Layout {
    fn of(sizes: Sizes) -> Self {
        let plugged = u64::from(sizes.memory_mib) << 20;
        let region = super::memory::region(sizes.memory_mib, sizes.max_memory_mib);
        Self { plugged, end: plugged + region.map_or(0, |region| region.length) }
    }

    /// Whether `image` belongs to the state with this `id`.
    fn is_of(&self, image: &File, id: &[u8; 16]) -> io::Result<bool> {
        let mut found = [0; 16];
        if image.metadata()?.len() != self.end + PAGE {
            return Ok(false);
        }
        image.read_exact_at(&mut found, self.end)?;
        Ok(found == *id)
    }
}

/// The checksum is right; this is what no machine of ours would have written.
fn check(saved: &MachineState, sizes: Sizes) -> Result<(), StateError> {
    let sensible = crate::config::check_sizes(
        u8::try_from(saved.vcpus.len()).unwrap_or(0),
        sizes.max_vcpus,
        sizes.memory_mib,
        sizes.max_memory_mib,
    );
    sensible.map_err(|_| StateError::Contents)
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    /// A state has some kilobytes a vCPU and device.
    const MOST: u64 = 64 << 20;
    let length = file.metadata()?.len().min(MOST);
    let mut bytes = vec![0; usize::try_from(length).expect("checked above")];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
