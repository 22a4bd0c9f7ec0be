//! Modern virtio over PCI (virtio 1.2 §4.1): capabilities that say where the structures are, the structures in
//! one 64-bit BAR, MSI-X for interrupts. No INTx, no legacy registers.
//!
//! ```text
//!   BAR 0   0x0000 common configuration      0x3000 notifications, 4 bytes a queue
//!           0x1000 ISR status                0x4000 MSI-X table
//!           0x2000 device configuration      0x6000 MSI-X pending bits
//! ```
//! Lock order: `config`, then `core`, then MSI-X.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::core::Area;
use super::core::Core;
use super::state::FunctionState;
use super::state::InterruptState;
use super::state::RestoreError;
use super::state::SaveError;
use crate::bus::AccessError;
use crate::io_thread::Hung;
use crate::pci::config_space::ConfigSpace;
use crate::pci::config_space::Identity;
use crate::pci::function::Bar;
use crate::pci::function::ConfigEffects;
use crate::pci::function::PciFunction;
use crate::pci::function::Region;
use crate::pci::msix;
use crate::pci::msix::Msix;
use crate::platform::GuestMemory;
use crate::platform::Platform;
use crate::virtio::device::VirtioDevice;
use crate::virtio::device::VirtioInterrupt;
use crate::virtio::spec;
use crate::virtio::spec::CommonRegister;
use crate::virtio::spec::Half;

const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x6000;
/// Room each structure has.
const WINDOW: u64 = 0x1000;
/// notify_off_multiplier: one doorbell address a queue.
const NOTIFY_MULTIPLIER: u64 = 4;

/// Capability ids and types (§4.1.4).
const VENDOR_CAPABILITY: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// ISR status bits (§4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// A virtio device as a PCI function.
pub struct VirtioPciFunction {
    config: Mutex<ConfigSpace>,
    core: Mutex<Core>,
    interrupt: Arc<PciInterrupt>,
    bars: [Bar; 1],
    device_id: u16,
    /// Offsets of message control and of the PCI configuration access capability.
    msix_capability: u16,
    window_capability: u16,
}

/// The device's way to the driver over MSI-X.
struct PciInterrupt {
    msix: Msix,
    queue_vectors: Vec<AtomicU16>,
    config_vector: AtomicU16,
    isr: AtomicU8,
    generation: AtomicU8,
    needs_reset: AtomicBool,
}

impl VirtioPciFunction {
    /// Puts a device behind PCI registers. One vector a queue and one for configuration changes.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        platform: Platform,
    ) -> io::Result<Arc<Self>> {
        let queues = device.queue_sizes().len();
        let vectors = u16::try_from(queues + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        assert!(
            queues as u64 * NOTIFY_MULTIPLIER <= WINDOW
                && u64::from(vectors) * msix::ENTRY_SIZE <= MSIX_PENDING - MSIX_TABLE,
            "the number of queues is a property of the device model"
        );
        let id = device.device_id();
        let interrupt = Arc::new(PciInterrupt {
            msix: Msix::new(platform.interrupts.vectors(vectors)?),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(spec::NO_VECTOR)).collect(),
            config_vector: AtomicU16::new(spec::NO_VECTOR),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        });
        let core = Core::new(device, memory, interrupt.clone(), platform.threads.as_ref())?;
        let doorbell = |(index, queue): (u64, &super::core::QueueRegisters)| Region::Doorbell {
            offset: NOTIFY + index * NOTIFY_MULTIPLIER,
            event: queue.notification.clone(),
        };
        let regions = (0..).zip(core.queues()).map(doorbell).collect();
        let bars = [Bar { index: BAR, size: BAR_SIZE, is_64bit: true, prefetchable: false, regions }];
        let identity = Identity {
            vendor: spec::PCI_VENDOR,
            device: spec::PCI_DEVICE_BASE + id,
            revision: 1,
            class: class(id),
            subsystem_vendor: spec::PCI_VENDOR,
            subsystem: 0x40,
        };
        let mut config = ConfigSpace::new(identity, &bars);
        let (body, writable) = interrupt.msix.capability(BAR, low32(MSIX_TABLE), low32(MSIX_PENDING));
        let msix_capability = u16::from(config.add_capability(msix::CAPABILITY, &body, &writable));
        add_structure(&mut config, CFG_COMMON, COMMON, spec::COMMON_SIZE, &[]);
        add_structure(&mut config, CFG_ISR, ISR, 1, &[]);
        add_structure(&mut config, CFG_DEVICE, DEVICE, low32(WINDOW), &[]);
        let notify_length = low32(queues as u64 * NOTIFY_MULTIPLIER);
        add_structure(
            &mut config,
            CFG_NOTIFY,
            NOTIFY,
            notify_length,
            &low32(NOTIFY_MULTIPLIER).to_le_bytes(),
        );
        let window_capability = u16::from(add_structure(&mut config, CFG_PCI, 0, 0, &[0; 4]));
        Ok(Arc::new(Self {
            config: Mutex::new(config),
            core: Mutex::new(core),
            interrupt,
            bars,
            device_id: id,
            msix_capability,
            window_capability,
        }))
    }

    /// Takes the device's work off its threads: from then on it leaves guest memory alone. To be called when no vCPU
    /// runs; [`VirtioPciFunction::resume`] follows. On an error everything goes on.
    pub fn pause(&self) -> Result<(), Hung> {
        self.core.lock().pause()
    }

    /// Lets a paused device go on.
    pub fn resume(&self) {
        self.core.lock().resume();
    }

    /// Why it could not be saved if it were paused now.
    pub fn unsaved(&self) -> Option<SaveError> {
        self.core.lock().unsaved()
    }

    /// The whole function, paused.
    pub fn save(&self) -> Result<FunctionState, SaveError> {
        let config = self.config.lock().save();
        let core = self.core.lock();
        if let Some(error) = core.unsaved() {
            return Err(error);
        }
        let (common, device) = core.save();
        let (interrupt, msix) = (self.interrupt.save(), self.interrupt.msix.save());
        Ok(FunctionState { device_id: self.device_id, config, common, interrupt, msix, device })
    }

    /// Takes over what [`VirtioPciFunction::save`] gave, of a function that is new and in guest memory as it was then,
    /// and starts the device; says where its BARs are decoded.
    pub fn restore(&self, state: &FunctionState) -> Result<ConfigEffects, RestoreError> {
        if state.device_id != self.device_id {
            return Err(RestoreError::Other);
        }
        let effects = self.config.lock().restore(&state.config).ok_or(RestoreError::Other)?;
        let mut core = self.core.lock();
        if !self.interrupt.restore(&state.interrupt) || !self.interrupt.msix.restore(&state.msix) {
            return Err(RestoreError::Other);
        }
        core.restore(&state.common, &state.device, state.interrupt.needs_reset)?;
        // One that was on its way to the driver may not have arrived. Drivers bear with one too many.
        let active = state.device.positions.iter().map(|position| position.index);
        active.for_each(|queue| self.interrupt.used_buffers(queue));
        Ok(effects)
    }

    fn read_common(&self, register: CommonRegister) -> u64 {
        let mut core = self.core.lock();
        let interrupt = &self.interrupt;
        if register == CommonRegister::DeviceStatus && core.finish_reset() {
            interrupt.reset();
        }
        match register {
            CommonRegister::DeviceFeatureSelect => core.device_feature_select().into(),
            CommonRegister::DeviceFeature => core.device_features().into(),
            CommonRegister::DriverFeatureSelect => core.driver_feature_select().into(),
            CommonRegister::DriverFeature => core.driver_features().into(),
            CommonRegister::ConfigMsixVector => interrupt.config_vector.load(Ordering::Relaxed).into(),
            CommonRegister::NumQueues => core.queues().len() as u64,
            CommonRegister::DeviceStatus => {
                let broken = interrupt.needs_reset.load(Ordering::SeqCst);
                (core.status() | if broken { spec::status::DEVICE_NEEDS_RESET } else { 0 }).into()
            }
            CommonRegister::ConfigGeneration => interrupt.generation.load(Ordering::SeqCst).into(),
            CommonRegister::QueueSelect => core.queue_select().into(),
            CommonRegister::QueueSize => core.queue_size().into(),
            CommonRegister::QueueMsixVector => {
                let vector = interrupt.queue_vectors.get(usize::from(core.queue_select()));
                vector.map_or(spec::NO_VECTOR, |v| v.load(Ordering::Relaxed)).into()
            }
            CommonRegister::QueueEnable => core.queue_enabled().into(),
            CommonRegister::QueueNotifyOff => core.queue_select().into(),
            CommonRegister::QueueDesc(half) => part(core.queue_address(Area::Descriptors), half),
            CommonRegister::QueueDriver(half) => part(core.queue_address(Area::Driver), half),
            CommonRegister::QueueDevice(half) => part(core.queue_address(Area::Device), half),
        }
    }

    fn write_common(&self, register: CommonRegister, value: u64) {
        let mut core = self.core.lock();
        let word = low32(value);
        // The bus hands over exactly the width of the register, so nothing is lost below.
        let short = u16::try_from(value & 0xffff).expect("masked to 16 bits");
        match register {
            CommonRegister::DeviceFeatureSelect => core.select_device_features(word),
            CommonRegister::DriverFeatureSelect => core.select_driver_features(word),
            CommonRegister::DriverFeature => core.accept_features(word),
            CommonRegister::ConfigMsixVector => {
                self.interrupt.config_vector.store(self.existing_vector(short), Ordering::Relaxed);
            }
            CommonRegister::DeviceStatus => {
                if core.write_status(short.to_le_bytes()[0]) {
                    self.interrupt.reset();
                }
            }
            CommonRegister::QueueSelect => core.select_queue(short),
            CommonRegister::QueueSize => core.set_queue_size(short),
            CommonRegister::QueueMsixVector => {
                if let Some(vector) = self.interrupt.queue_vectors.get(usize::from(core.queue_select())) {
                    vector.store(self.existing_vector(short), Ordering::Relaxed);
                }
            }
            CommonRegister::QueueEnable => core.enable_queue(short),
            CommonRegister::QueueDesc(half) => core.set_queue_address(Area::Descriptors, half, value),
            CommonRegister::QueueDriver(half) => core.set_queue_address(Area::Driver, half, value),
            CommonRegister::QueueDevice(half) => core.set_queue_address(Area::Device, half, value),
            CommonRegister::DeviceFeature
            | CommonRegister::NumQueues
            | CommonRegister::ConfigGeneration
            | CommonRegister::QueueNotifyOff => {}
        }
    }

    /// A vector that does not exist reads back as NO_VECTOR: the driver's sign of failure (§4.1.5.1.2.1).
    fn existing_vector(&self, vector: u16) -> u16 {
        if vector < self.interrupt.msix.vectors() { vector } else { spec::NO_VECTOR }
    }

    /// The BAR access that the PCI configuration access capability describes (§4.1.4.9), if a configuration
    /// access of `width` at `offset` is to its data field.
    fn window(&self, config: &ConfigSpace, offset: u16, width: usize) -> Option<(u64, usize)> {
        let data = self.window_capability + 16;
        let mut capability = [0; 16];
        config.read(self.window_capability, &mut capability);
        let [_, _, _, _, bar, _, _, _, o0, o1, o2, o3, l0, l1, l2, l3] = capability;
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let valid = offset == data && width == length && matches!(length, 1 | 2 | 4) && bar == BAR;
        valid.then_some((u64::from(u32::from_le_bytes([o0, o1, o2, o3])), length))
    }
}

impl PciFunction for VirtioPciFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let config = self.config.lock();
        config.read(offset, data);
        if let Some((at, _)) = self.window(&config, offset, data.len()) {
            drop(config);
            // What cannot be read leaves the field's old bytes.
            let _ = self.read_bar(BAR, at, data);
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffects {
        let mut config = self.config.lock();
        let effects = config.write(offset, data);
        let mut control = [0; 2];
        config.read(self.msix_capability + 2, &mut control);
        self.interrupt.msix.set_control(u16::from_le_bytes(control));
        if let Some((at, _)) = self.window(&config, offset, data.len()) {
            drop(config);
            let _ = self.write_bar(BAR, at, data);
        }
        effects
    }

    fn bars(&self) -> &[Bar] {
        &self.bars
    }

    fn read_bar(&self, _bar: u8, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let width = data.len();
        match offset {
            COMMON..ISR => {
                let register =
                    CommonRegister::at(offset, width).ok_or(AccessError::Width { offset, width })?;
                data.copy_from_slice(&self.read_common(register).to_le_bytes()[..width]);
            }
            ISR => {
                data.fill(0);
                // Reading clears it (§4.1.4.5).
                data[0] = self.interrupt.isr.swap(0, Ordering::SeqCst);
            }
            DEVICE..NOTIFY => {
                data.fill(0);
                self.core.lock().device().read_config(offset - DEVICE, data);
            }
            NOTIFY..MSIX_TABLE => data.fill(0),
            MSIX_TABLE..MSIX_PENDING => self.interrupt.msix.read_table(offset - MSIX_TABLE, data)?,
            MSIX_PENDING..BAR_SIZE => self.interrupt.msix.read_pending(offset - MSIX_PENDING, data)?,
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }

    fn write_bar(&self, _bar: u8, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let width = data.len();
        match offset {
            COMMON..ISR => {
                let register =
                    CommonRegister::at(offset, width).ok_or(AccessError::Width { offset, width })?;
                let mut value = [0; 8];
                value[..width].copy_from_slice(data);
                self.write_common(register, u64::from_le_bytes(value));
            }
            DEVICE..NOTIFY => self.core.lock().device().write_config(offset - DEVICE, data),
            // Normally the kernel turns these into the event without coming here.
            NOTIFY..MSIX_TABLE => {
                let index = usize::try_from((offset - NOTIFY) / NOTIFY_MULTIPLIER).unwrap_or(usize::MAX);
                if let Some(queue) = self.core.lock().queues().get(index) {
                    // A full counter means the notification is pending already.
                    let _ = queue.notification.write(1);
                }
            }
            MSIX_TABLE..MSIX_PENDING => self.interrupt.msix.write_table(offset - MSIX_TABLE, data)?,
            _ => return Err(AccessError::NoRegister(offset)),
        }
        Ok(())
    }

    fn place_bar(&self, bar: u8, address: u64) {
        self.config.lock().place_bar(bar, address);
    }

    fn removed(&self) {
        self.core.lock().remove();
        self.interrupt.reset();
        self.interrupt.msix.reset();
    }
}

impl PciInterrupt {
    fn raise(&self, vector: &AtomicU16, isr: u8) {
        self.isr.fetch_or(isr, Ordering::SeqCst);
        let vector = vector.load(Ordering::Relaxed);
        if vector != spec::NO_VECTOR {
            self.msix.trigger(vector);
        }
    }

    fn save(&self) -> InterruptState {
        InterruptState {
            queue_vectors: self.queue_vectors.iter().map(|vector| vector.load(Ordering::SeqCst)).collect(),
            config_vector: self.config_vector.load(Ordering::SeqCst),
            isr: self.isr.load(Ordering::SeqCst),
            generation: self.generation.load(Ordering::SeqCst),
            needs_reset: self.needs_reset.load(Ordering::SeqCst),
        }
    }

    /// False, and nothing changed, if it is of another number of queues.
    fn restore(&self, state: &InterruptState) -> bool {
        if state.queue_vectors.len() != self.queue_vectors.len() {
            return false;
        }
        for (vector, &value) in self.queue_vectors.iter().zip(&state.queue_vectors) {
            vector.store(value, Ordering::SeqCst);
        }
        self.config_vector.store(state.config_vector, Ordering::SeqCst);
        self.isr.store(state.isr, Ordering::SeqCst);
        self.generation.store(state.generation, Ordering::SeqCst);
        self.needs_reset.store(state.needs_reset, Ordering::SeqCst);
        true
    }

    /// What a device reset clears (§4.1.4.3: the vectors become NO_VECTOR).
    fn reset(&self) {
        self.queue_vectors.iter().for_each(|v| v.store(spec::NO_VECTOR, Ordering::Relaxed));
        self.config_vector.store(spec::NO_VECTOR, Ordering::Relaxed);
        self.isr.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }
}

impl VirtioInterrupt for PciInterrupt {
    fn used_buffers(&self, index: u16) {
        if let Some(vector) = self.queue_vectors.get(usize::from(index)) {
            self.raise(vector, ISR_QUEUE);
        }
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(&self.config_vector, ISR_CONFIG);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(&self.config_vector, ISR_CONFIG);
    }
}

/// Appends a virtio structure capability (§4.1.4); returns its offset in configuration space.
fn add_structure(config: &mut ConfigSpace, kind: u8, offset: u64, length: u32, extra: &[u8]) -> u8 {
    let size = u8::try_from(16 + extra.len()).expect("16 or 20");
    let mut body = vec![size, kind, BAR, 0, 0, 0];
    body.extend(low32(offset).to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(extra);
    let writable: Vec<u8> = if kind == CFG_PCI {
        // bar, offset, length and data are the driver's.
        (0..body.len()).map(|i| if i == 2 || i >= 6 { 0xff } else { 0 }).collect()
    } else {
        Vec::new()
    };
    config.add_capability(VENDOR_CAPABILITY, &body, &writable)
}

/// PCI class of a virtio device id; informative only.
fn class(device_id: u16) -> u32 {
    match device_id {
        1 => 0x02_00_00,  // network, Ethernet
        2 => 0x01_80_00,  // mass storage, other
        3 => 0x07_80_00,  // communication, other
        26 => 0x01_80_00, // shared file system
        _ => 0xff_00_00,
    }
}

fn part(value: u64, half: Half) -> u64 {
    match half {
        Half::Low => value & 0xffff_ffff,
        Half::High => value >> 32,
        Half::Both => value,
    }
}

fn low32(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).expect("masked to 32 bits")
}
