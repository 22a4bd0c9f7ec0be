//! From a configuration to a paused machine, one step a line in boot order.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiai_devices::bus::Bus;
use kiai_devices::bus::InsertError;
use kiai_devices::ioapic::IoApic;
use kiai_devices::pci::segment::PciSegment;
use kiai_devices::pci::segment::Windows;
use kiai_devices::platform::GuestMemory;
use kiai_devices::platform::Interrupts;
use kiai_devices::platform::Platform;
use kiai_devices::serial::Serial;
use parking_lot::Mutex;
use vm_memory::GuestAddressSpace;

use super::AttachError;
use super::Machine;
use super::passthrough::Passthrough;
use super::power::AcpiPower;
use super::power::KeyboardReset;
use super::threads::IoThreads;
use crate::acpi;
use crate::boot;
use crate::config::ConfigError;
use crate::config::VmConfig;
use crate::console::Console;
use crate::kvm;
use crate::layout;
use crate::memory;
use crate::seccomp;
use crate::vcpu;

/// Why a machine could not be built; nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The configuration contradicts itself.
    #[error("configuration")]
    Config(#[from] ConfigError),
    /// Guest RAM.
    #[error("guest memory")]
    Memory(#[from] memory::MemoryError),
    /// KVM.
    #[error("hypervisor")]
    Kvm(#[from] kvm::KvmError),
    /// Kernel, initrd or command line. The message names the file, so it stands for the whole.
    #[error(transparent)]
    Load(#[from] boot::LoadError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] vcpu::VcpuError),
    /// A device.
    #[error("attach")]
    Attach(#[from] AttachError),
    /// The ACPI tables did not fit.
    #[error("ACPI tables: {0}")]
    Acpi(String),
    /// A fixed device does not fit on its bus: a mistake in the address map.
    #[error("address map")]
    Bus(#[from] InsertError),
    /// The host refused a thread, an eventfd or the like.
    #[error("{step}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}

impl Machine {
    pub(crate) fn build(mut config: VmConfig) -> Result<Self, BootError> {
        config.validate()?;
        let host = |step| move |source| BootError::Host { step, source };
        vcpu::install_signal_handler().map_err(host("vCPU signal handler"))?;
        seccomp::prepare().map_err(host("system call filters"))?;

        crate::descriptors::reserve();
        let (opened, loaded) = std::thread::scope(|scope| {
            let opening = std::thread::Builder::new().name("kvm-open".into()).spawn_scoped(scope, kvm::open);
            (opening.map(|opening| opening.join().expect("opening KVM does not panic")), load(&mut config))
        });
        let (kvm, vm) = opened.map_err(host("thread that opens KVM"))??;
        let Loaded { memory, boot_ram, entry } = loaded?;
        let ram = memory.memory();
        let regions = memory::regions(&ram);
        let mapper = Arc::new(kvm::equip(&vm, &regions)?);
        let plugged = memory::Ram::new(&regions);
        let region = super::memory::region(config.memory_mib, config.max_memory_mib);
        let hotplug = region.map(|region| {
            let (mapper, plugged) = (mapper.clone(), plugged.clone());
            memory::HotplugRam::new(region, config.huge_pages, memory.clone(), mapper, plugged)
                .map(|hotplug| (region, hotplug))
        });
        let hotplug = hotplug.transpose()?;
        let boot_ram = Arc::new(boot_ram);
        let more_ram = hotplug.as_ref().map(|(_, hotplug)| hotplug.reservation());
        let threads = Arc::new(IoThreads::new([boot_ram.clone()].into_iter().chain(more_ram).collect()));
        let platform = Platform {
            interrupts: Arc::new(kvm::KvmInterrupts::new(vm.clone())),
            doorbells: Arc::new(kvm::KvmDoorbells(vm.clone())),
            mapper,
            threads: threads.clone(),
        };

        let control = vcpu::Control::new();
        let console = Console::new(config.console.take());
        let buses = fixed_devices(&platform, &control, &console, boot_ram.clone())?;
        let windows = Windows {
            ecam: layout::ECAM,
            mmio32: layout::PCI32..layout::PCI32 + layout::PCI32_SIZE,
            mmio64: layout::PCI64..layout::PCI64 + layout::PCI64_SIZE,
        };
        let segment = PciSegment::new(buses.mmio.clone(), platform.clone(), windows)?;

        let maker = vcpu::Maker::new(&kvm, vm.clone(), config.max_vcpus).map_err(vcpu::VcpuError::from)?;
        let ioapic = buses.ioapic.clone();
        let vcpus = vcpu::Vcpus::start(maker, control.clone(), buses, (&ram, entry))?;
        vcpus.grow(config.vcpus)?;
        let devices = std::mem::take(&mut config.devices);
        let mut machine = Self {
            vcpus,
            control,
            devices: Mutex::new(BTreeMap::new()),
            segment,
            platform,
            threads,
            passthrough: Passthrough::new(vm, plugged.clone(), ioapic),
            console,
            memory: memory.clone(),
            ram: plugged,
            boot_mib: config.memory_mib,
            hotplug: None,
            balloon: Mutex::default(),
            _boot_ram: boot_ram,
        };
        for device in devices {
            machine.attach(device)?;
        }
        if let Some((region, hotplug)) = hotplug {
            machine.attach_hotplug(region, hotplug)?;
        }
        Ok(machine)
    }
}

/// Guest RAM with all that is in it when the guest starts.
struct Loaded {
    memory: GuestMemory,
    boot_ram: memory::Reservation,
    entry: boot::Entry,
}

/// Allocates guest RAM and puts the ACPI tables, the kernel and the initrd into it. Needs no KVM.
fn load(config: &mut VmConfig) -> Result<Loaded, BootError> {
    let (memory, boot_ram) = memory::allocate(config.memory_mib, config.huge_pages)?;
    let ram = memory.memory();
    let rsdp = acpi::write(&ram, config.max_vcpus).map_err(|e| BootError::Acpi(e.to_string()))?;
    let command_line = boot::command_line::build(config.vcpus, &config.command_line)?;
    let (kernel, initrd) = (&mut config.kernel, config.initrd.as_mut());
    let entry = boot::load(&ram, config.memory_mib, kernel, initrd, &command_line, rsdp)?;
    Ok(Loaded { memory, boot_ram, entry })
}

/// The I/O APIC, COM1 and the power registers.
fn fixed_devices(
    platform: &Platform,
    control: &Arc<vcpu::Control>,
    console: &Console,
    ram: Arc<memory::Reservation>,
) -> Result<vcpu::Buses, BootError> {
    let host = |step| move |source| BootError::Host { step, source };
    let (mmio, pio) = (Arc::new(Bus::new("MMIO")), Arc::new(Bus::new("PIO")));
    let interrupts: &dyn Interrupts = platform.interrupts.as_ref();
    let ioapic = Arc::new(IoApic::new(interrupts).map_err(host("I/O APIC"))?);
    mmio.insert(layout::IOAPIC, layout::IOAPIC_SIZE, ioapic.clone())?;
    let serial = Serial::new(Box::new(console.clone()), ioapic.clone(), layout::SERIAL_GSI);
    pio.insert(u64::from(layout::SERIAL), u64::from(layout::SERIAL_SIZE), Arc::new(serial))?;
    pio.insert(u64::from(layout::I8042_COMMAND), 1, Arc::new(KeyboardReset(control.clone())))?;
    pio.insert(
        u64::from(layout::POWER),
        u64::from(layout::POWER_SIZE),
        Arc::new(AcpiPower(control.clone())),
    )?;
    Ok(vcpu::Buses { mmio, pio, ioapic, _ram: ram })
}
