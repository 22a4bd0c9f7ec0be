//! Device status, feature negotiation, queue registers and reset (virtio 1.2 §2.1, §2.2, §3.1). Knows no PCI.
//!
//! ```text
//!   reset ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► DRIVER_OK (device active)
//!     ▲                                                  │
//!     └───────────────── status = 0 ─────────────────────┘
//! ```
//! A reset is over when the device's threads have let go of it. While one hangs, the status stays what it was: a
//! driver reads it until it is 0 (§4.1.4.3.2).
//!
//! Queue registers can be written until the queue is enabled or the driver is ready, and never after: a
//! device's threads use what was checked.

use std::sync::Arc;

use virtio_queue::Queue;
use virtio_queue::QueueT;
use vm_memory::GuestAddress;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::eventfd::EventFd;

use super::state::CommonState;
use super::state::QueueState;
use super::state::RestoreError;
use super::state::SaveError;
use crate::io_thread::Hung;
use crate::io_thread::IoThread;
use crate::io_thread::Pausable;
use crate::log_limit::LogLimit;
use crate::platform::GuestMemory;
use crate::platform::Threads;
use crate::virtio::device::Activation;
use crate::virtio::device::ActiveQueue;
use crate::virtio::device::DeviceState;
use crate::virtio::device::Position;
use crate::virtio::device::VirtioDevice;
use crate::virtio::device::VirtioInterrupt;
use crate::virtio::spec::Half;
use crate::virtio::spec::feature;
use crate::virtio::spec::status;

/// Registers of one queue.
pub(super) struct QueueRegisters {
    max_size: u16,
    size: u16,
    enabled: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
    /// Signalled by the driver's notification. The same for the life of the device.
    pub(super) notification: Arc<EventFd>,
}

/// Which of a queue's areas an address register is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Area {
    Descriptors,
    Driver,
    Device,
}

/// The state every transport has.
pub(super) struct Core {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<dyn VirtioInterrupt>,
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    threads: Vec<Arc<IoThread>>,
    /// The driver has asked for a reset, and a thread of the device hangs.
    resetting: bool,
    /// Nothing can start it any more, not even a write that was under way when it left the bus.
    removed: bool,
}

impl Core {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        interrupt: Arc<dyn VirtioInterrupt>,
        threads: &dyn Threads,
    ) -> std::io::Result<Self> {
        let threads =
            device.threads().into_iter().map(|role| threads.thread(role)).collect::<Result<_, _>>()?;
        let queues = device
            .queue_sizes()
            .iter()
            .map(|&max_size| {
                let notification = Arc::new(EventFd::new(EFD_NONBLOCK)?);
                Ok(QueueRegisters {
                    max_size,
                    size: max_size,
                    enabled: false,
                    descriptors: 0,
                    driver: 0,
                    device: 0,
                    notification,
                })
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Self {
            device,
            memory,
            interrupt,
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            threads,
            resetting: false,
            removed: false,
        })
    }

    pub(super) fn device(&mut self) -> &mut dyn VirtioDevice {
        self.device.as_mut()
    }

    pub(super) fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    pub(super) fn status(&self) -> u8 {
        self.status
    }

    fn offered(&self) -> u64 {
        self.device.features() | feature::VERSION_1 | feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX
    }

    pub(super) fn device_feature_select(&self) -> u32 {
        self.device_feature_select
    }

    pub(super) fn select_device_features(&mut self, select: u32) {
        self.device_feature_select = select;
    }

    pub(super) fn device_features(&self) -> u32 {
        half(self.offered(), self.device_feature_select)
    }

    pub(super) fn driver_feature_select(&self) -> u32 {
        self.driver_feature_select
    }

    pub(super) fn select_driver_features(&mut self, select: u32) {
        self.driver_feature_select = select;
    }

    pub(super) fn driver_features(&self) -> u32 {
        half(self.driver_features, self.driver_feature_select)
    }

    /// Ignored once negotiation is over (§3.1.1).
    pub(super) fn accept_features(&mut self, bits: u32) {
        if self.status & status::FEATURES_OK == 0 {
            match self.driver_feature_select {
                0 => self.driver_features = (self.driver_features & !0xffff_ffff) | u64::from(bits),
                1 => self.driver_features = (self.driver_features & 0xffff_ffff) | u64::from(bits) << 32,
                _ => {}
            }
        }
    }

    /// The driver wrote device status; 0 resets. Returns whether it has been reset.
    pub(super) fn write_status(&mut self, value: u8) -> bool {
        if self.removed {
            return false;
        }
        if value == 0 {
            return self.reset();
        }
        if self.resetting {
            return false;
        }
        // Comes back when the driver adds a bit to what it read; only the device sets it.
        let value = value & !status::DEVICE_NEEDS_RESET;
        // A driver must not clear bits (§2.1.1).
        if value & self.status != self.status {
            return false;
        }
        let new = value & !self.status;
        if new & status::FEATURES_OK != 0 && !self.features_agree() {
            // Left clear: that is how the driver learns that the set is not acceptable (§3.1.1).
            self.status = value & !(status::FEATURES_OK | status::DRIVER_OK);
            return false;
        }
        let ready = new & status::DRIVER_OK != 0 && value & status::FEATURES_OK != 0;
        self.status = if ready { value } else { value & !(new & status::DRIVER_OK) };
        if ready && self.activate(&[]).is_err() {
            self.interrupt.needs_reset();
        }
        false
    }

    fn features_agree(&self) -> bool {
        let unknown = self.driver_features & !self.offered();
        unknown == 0 && self.driver_features & feature::VERSION_1 != 0
    }

    /// Hands the queues to the device, each from its beginning or where it was. On an error the device is idle.
    fn activate(&mut self, positions: &[Position]) -> Result<(), ()> {
        let memory = self.memory.memory();
        let mut queues = Vec::new();
        for (index, registers) in (0u16..).zip(&self.queues) {
            if !registers.enabled {
                continue;
            }
            let queue = registers.build(self.driver_features & feature::RING_EVENT_IDX != 0);
            let Some(mut queue) = queue.filter(|queue| queue.is_valid(&*memory)) else {
                self.report(&format_args!("queue {index} is not valid"));
                return Err(());
            };
            if let Some(position) = positions.iter().find(|position| position.index == index) {
                queue.set_next_avail(position.next_avail);
                queue.set_next_used(position.next_used);
            }
            queues.push(ActiveQueue { index, queue, notification: registers.notification.clone() });
        }
        let activation = Activation {
            memory: self.memory.clone(),
            features: self.driver_features,
            queues,
            interrupt: self.interrupt.clone(),
            threads: self.threads.clone(),
        };
        self.device.activate(activation).map_err(|e| {
            self.report(&e);
            // If a thread hangs in what it got, the driver's reset asks once more.
            let _ = self.device.reset();
        })
    }

    /// Why the device did not start; a driver can try for ever.
    fn report(&self, why: &dyn std::fmt::Display) {
        static REPORTS: LogLimit = LogLimit::new();
        if REPORTS.allows() {
            tracing::warn!("virtio device {} cannot start: {why}", self.device.device_id());
        }
    }

    /// The function has left the bus: resets the device for the last time.
    pub(super) fn remove(&mut self) {
        self.reset();
        self.removed = true;
    }

    /// Whether a reset that a hanging thread has kept from its end has come to it now.
    pub(super) fn finish_reset(&mut self) -> bool {
        self.resetting && !self.removed && self.reset()
    }

    /// Back to the state before any driver. Returns once the device has stopped, or false if a thread of it hangs:
    /// then nothing has changed.
    pub(super) fn reset(&mut self) -> bool {
        self.resetting = self.device.reset().is_err();
        if self.resetting {
            return false;
        }
        // Destructured, so that a new field cannot be forgotten.
        let Self {
            device: _,
            memory: _,
            interrupt: _,
            status,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues,
            threads: _,
            resetting: _,
            removed: _,
        } = self;
        *status = 0;
        (*device_feature_select, *driver_feature_select) = (0, 0);
        *driver_features = 0;
        *queue_select = 0;
        for queue in queues {
            queue.size = queue.max_size;
            queue.enabled = false;
            (queue.descriptors, queue.driver, queue.device) = (0, 0, 0);
        }
        true
    }

    /// Takes the device's work off its threads. On an error none of it is off.
    pub(super) fn pause(&mut self) -> Result<(), Hung> {
        let paused = self.device.work().into_iter().try_for_each(Pausable::pause);
        if paused.is_err() {
            self.resume();
        }
        paused
    }

    /// Lets a paused device go on. One that cannot asks its driver for a reset.
    pub(super) fn resume(&mut self) {
        let resumed = self.device.work().into_iter().try_for_each(Pausable::resume);
        if let Err(e) = resumed {
            self.report(&e);
            self.interrupt.needs_reset();
        }
    }

    /// Why it cannot be saved as it is.
    pub(super) fn unsaved(&self) -> Option<SaveError> {
        if self.resetting {
            Some(SaveError::Resetting)
        } else {
            self.device.unsaved().map(SaveError::Unsaved)
        }
    }

    /// The registers and what the device knows, of a paused device.
    pub(super) fn save(&self) -> (CommonState, DeviceState) {
        let queue = |queue: &QueueRegisters| QueueState {
            size: queue.size,
            enabled: queue.enabled,
            descriptors: queue.descriptors,
            driver: queue.driver,
            device: queue.device,
        };
        let common = CommonState {
            status: self.status,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            queues: self.queues.iter().map(queue).collect(),
        };
        (common, self.device.save())
    }

    /// Takes over what [`Core::save`] gave. The device is activated if its driver was ready, unless it is `broken`.
    pub(super) fn restore(
        &mut self,
        common: &CommonState,
        device: &DeviceState,
        broken: bool,
    ) -> Result<(), RestoreError> {
        if common.queues.len() != self.queues.len() {
            return Err(RestoreError::Other);
        }
        self.device.restore(&device.own).map_err(|_| RestoreError::Other)?;
        self.driver_features = common.driver_features;
        if common.status & status::FEATURES_OK != 0 && !self.features_agree() {
            return Err(RestoreError::Other);
        }
        for (queue, state) in self.queues.iter_mut().zip(&common.queues) {
            if !state.size.is_power_of_two() || state.size > queue.max_size {
                return Err(RestoreError::Contradiction("the size of a queue"));
            }
            (queue.size, queue.enabled) = (state.size, state.enabled);
            (queue.descriptors, queue.driver, queue.device) = (state.descriptors, state.driver, state.device);
        }
        self.status = common.status & !status::DEVICE_NEEDS_RESET;
        self.device_feature_select = common.device_feature_select;
        self.driver_feature_select = common.driver_feature_select;
        self.queue_select = common.queue_select;
        if self.status & status::DRIVER_OK == 0 || broken {
            return Ok(());
        }
        if self.status & status::FEATURES_OK == 0 {
            return Err(RestoreError::Contradiction("a driver that is ready without features"));
        }
        self.activate(&device.positions).map_err(|()| RestoreError::Activate)
    }

    pub(super) fn queue_select(&self) -> u16 {
        self.queue_select
    }

    pub(super) fn select_queue(&mut self, index: u16) {
        self.queue_select = index;
    }

    /// The selected queue; one that does not exist reads as size 0 (§4.1.4.3.1).
    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue, if its registers may still be written.
    fn selected_open(&mut self) -> Option<&mut QueueRegisters> {
        if self.status & status::DRIVER_OK != 0 {
            return None;
        }
        self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.enabled)
    }

    pub(super) fn queue_size(&self) -> u16 {
        self.selected().map_or(0, |queue| queue.size)
    }

    /// Powers of two up to the device's maximum are taken, anything else is ignored.
    pub(super) fn set_queue_size(&mut self, size: u16) {
        if let Some(queue) = self.selected_open()
            && size.is_power_of_two()
            && size <= queue.max_size
        {
            queue.size = size;
        }
    }

    pub(super) fn queue_enabled(&self) -> bool {
        self.selected().is_some_and(|queue| queue.enabled)
    }

    /// A driver must not write 0 (§4.1.4.3.2); that is ignored.
    pub(super) fn enable_queue(&mut self, value: u16) {
        if let Some(queue) = self.selected_open()
            && value == 1
        {
            queue.enabled = true;
        }
    }

    pub(super) fn queue_address(&self, area: Area) -> u64 {
        self.selected().map_or(0, |queue| match area {
            Area::Descriptors => queue.descriptors,
            Area::Driver => queue.driver,
            Area::Device => queue.device,
        })
    }

    pub(super) fn set_queue_address(&mut self, area: Area, part: Half, value: u64) {
        if let Some(queue) = self.selected_open() {
            let address = match area {
                Area::Descriptors => &mut queue.descriptors,
                Area::Driver => &mut queue.driver,
                Area::Device => &mut queue.device,
            };
            *address = match part {
                Half::Low => (*address & !0xffff_ffff) | (value & 0xffff_ffff),
                Half::High => (*address & 0xffff_ffff) | (value << 32),
                Half::Both => value,
            };
        }
    }
}

impl QueueRegisters {
    /// A queue of these registers, or `None` if an address is not aligned (§2.7).
    fn build(&self, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        queue.try_set_size(self.size).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.device)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Some(queue)
    }
}

fn half(bits: u64, select: u32) -> u32 {
    let part = match select {
        0 => bits & 0xffff_ffff,
        1 => bits >> 32,
        _ => 0,
    };
    u32::try_from(part).expect("32 bits were taken")
}
