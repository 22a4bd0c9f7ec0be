//! From a configuration, or from what was saved, to a paused machine, one step a line in boot order.

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
use kiai_devices::serial::SerialState;
use kvm_ioctls::Kvm;
use kvm_ioctls::VmFd;
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

/// How large a machine is and may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) memory_mib: u32,
    pub(super) max_memory_mib: u32,
    pub(super) max_vcpus: u8,
    pub(super) huge_pages: bool,
}

/// Guest RAM with all that is in it when the guest starts.
struct Loaded {
    memory: GuestMemory,
    boot_ram: memory::Reservation,
    entry: boot::Entry,
}

/// What of a machine's fixed devices has state.
pub(super) struct Fixed {
    pub(super) ioapic: Arc<IoApic>,
    pub(super) serial: Arc<Serial>,
}

impl Machine {
    pub(crate) fn build(mut config: VmConfig) -> Result<Self, BootError> {
        config.validate()?;
        let ((kvm, vm), loaded) = with_kvm(|| load(&mut config))?;
        let Loaded { memory, boot_ram, entry } = loaded?;
        let sizes = Sizes {
            memory_mib: config.memory_mib,
            max_memory_mib: config.max_memory_mib,
            max_vcpus: config.max_vcpus,
            huge_pages: config.huge_pages,
        };
        let console = Console::new(config.console.take());
        let ram = memory.memory();
        let parts = Parts::new(vm, sizes, (memory, boot_ram), console, None)?;
        let maker = parts.maker(&kvm)?;
        let vcpus = vcpu::Vcpus::start(maker, parts.control.clone(), parts.buses.clone(), (&ram, entry))?;
        vcpus.grow(config.vcpus)?;
        let devices = std::mem::take(&mut config.devices);
        let mut machine = parts.assemble(vcpus);
        for device in devices {
            machine.attach(device)?;
        }
        machine.attach_hotplug()?;
        Ok(machine)
    }
}

/// Opens KVM while `meanwhile` is done, which needs none of it.
pub(super) fn with_kvm<T>(meanwhile: impl FnOnce() -> T) -> Result<((Kvm, Arc<VmFd>), T), BootError> {
    let host = |step| move |source| BootError::Host { step, source };
    vcpu::install_signal_handler().map_err(host("vCPU signal handler"))?;
    seccomp::prepare().map_err(host("system call filters"))?;
    crate::descriptors::reserve();
    let (opened, done) = std::thread::scope(|scope| {
        let opening = std::thread::Builder::new().name("kvm-open".into()).spawn_scoped(scope, kvm::open);
        (opening.map(|opening| opening.join().expect("opening KVM does not panic")), meanwhile())
    });
    Ok((opened.map_err(host("thread that opens KVM"))??, done))
}

/// A machine without vCPUs and devices.
pub(super) struct Parts {
    sizes: Sizes,
    vm: Arc<VmFd>,
    memory: GuestMemory,
    ram: Arc<memory::Ram>,
    pub(super) hotplug: Option<Arc<memory::HotplugRam>>,
    boot_ram: Arc<memory::Reservation>,
    threads: Arc<IoThreads>,
    platform: Platform,
    pub(super) control: Arc<vcpu::Control>,
    console: Console,
    pub(super) buses: vcpu::Buses,
    pub(super) fixed: Fixed,
    segment: Arc<PciSegment>,
}

impl Parts {
    /// `serial` is the port's state, if the guest has set it up already.
    pub(super) fn new(
        vm: Arc<VmFd>,
        sizes: Sizes,
        (memory, boot_ram): (GuestMemory, memory::Reservation),
        console: Console,
        serial: Option<&SerialState>,
    ) -> Result<Self, BootError> {
        let regions = memory::regions(&memory.memory());
        let mapper = Arc::new(kvm::equip(&vm, &regions)?);
        let ram = memory::Ram::new(&regions);
        let region = super::memory::region(sizes.memory_mib, sizes.max_memory_mib);
        let hotplug = region.map(|region| {
            let (mapper, ram) = (mapper.clone(), ram.clone());
            memory::HotplugRam::new(region, sizes.huge_pages, memory.clone(), mapper, ram).map(Arc::new)
        });
        let hotplug = hotplug.transpose()?;
        let boot_ram = Arc::new(boot_ram);
        let more_ram = hotplug.as_ref().map(|hotplug| hotplug.reservation());
        let threads = Arc::new(IoThreads::new([boot_ram.clone()].into_iter().chain(more_ram).collect()));
        let platform = Platform {
            interrupts: Arc::new(kvm::KvmInterrupts::new(vm.clone())),
            doorbells: Arc::new(kvm::KvmDoorbells(vm.clone())),
            mapper,
            threads: threads.clone(),
        };
        let control = vcpu::Control::new();
        let (buses, fixed) = fixed_devices(&platform, &control, &console, boot_ram.clone(), serial)?;
        let windows = Windows {
            ecam: layout::ECAM,
            mmio32: layout::PCI32..layout::PCI32 + layout::PCI32_SIZE,
            mmio64: layout::PCI64..layout::PCI64 + layout::PCI64_SIZE,
        };
        let segment = PciSegment::new(buses.mmio.clone(), platform.clone(), windows)?;
        Ok(Self {
            sizes,
            vm,
            memory,
            ram,
            hotplug,
            boot_ram,
            threads,
            platform,
            control,
            console,
            buses,
            fixed,
            segment,
        })
    }

    pub(super) fn maker(&self, kvm: &Kvm) -> Result<vcpu::Maker, BootError> {
        let maker = vcpu::Maker::new(kvm, self.vm.clone(), self.sizes.max_vcpus);
        Ok(maker.map_err(vcpu::VcpuError::from)?)
    }

    pub(super) fn assemble(self, vcpus: vcpu::Vcpus) -> Machine {
        Machine {
            vcpus,
            control: self.control,
            devices: Mutex::default(),
            segment: self.segment,
            platform: self.platform,
            threads: self.threads,
            passthrough: Passthrough::new(self.vm.clone(), self.ram.clone(), self.fixed.ioapic.clone()),
            fixed: self.fixed,
            console: self.console,
            memory: self.memory,
            ram: self.ram,
            sizes: self.sizes,
            plugging: self.hotplug,
            hotplug: None,
            balloon: Mutex::default(),
            vm: self.vm,
            is_new: true,
            _boot_ram: self.boot_ram,
        }
    }
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
    serial: Option<&SerialState>,
) -> Result<(vcpu::Buses, Fixed), BootError> {
    let host = |step| move |source| BootError::Host { step, source };
    let (mmio, pio) = (Arc::new(Bus::new("MMIO")), Arc::new(Bus::new("PIO")));
    let interrupts: &dyn Interrupts = platform.interrupts.as_ref();
    let ioapic = Arc::new(IoApic::new(interrupts).map_err(host("I/O APIC"))?);
    mmio.insert(layout::IOAPIC, layout::IOAPIC_SIZE, ioapic.clone())?;
    let (sink, pin) = (Box::new(console.clone()), layout::SERIAL_GSI);
    let serial = match serial {
        Some(state) => Serial::restored(sink, ioapic.clone(), pin, state)
            .ok_or_else(|| host("serial port")(std::io::ErrorKind::InvalidData.into()))?,
        None => Serial::new(sink, ioapic.clone(), pin),
    };
    let serial = Arc::new(serial);
    pio.insert(u64::from(layout::SERIAL), u64::from(layout::SERIAL_SIZE), serial.clone())?;
    pio.insert(u64::from(layout::I8042_COMMAND), 1, Arc::new(KeyboardReset(control.clone())))?;
    pio.insert(
        u64::from(layout::POWER),
        u64::from(layout::POWER_SIZE),
        Arc::new(AcpiPower(control.clone())),
    )?;
    let buses = vcpu::Buses { mmio, pio, ioapic: ioapic.clone(), _ram: ram };
    Ok((buses, Fixed { ioapic, serial }))
}
