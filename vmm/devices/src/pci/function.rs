//! What the segment needs of a function, be it virtio, VFIO or the host bridge.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::AccessError;

/// One PCI function. Methods are called on vCPU threads, from several at once; the function locks itself.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space; `offset` is 0..4096, the access is naturally aligned and 1, 2 or 4 bytes.
    fn read_config(&self, offset: u16, data: &mut [u8]);
    /// Writes configuration space, and says what that changed for the bus.
    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigEffects;
    /// The layout of the base address registers. Fixed for the life of the function: addresses belong to the
    /// segment and to configuration space, never to this.
    fn bars(&self) -> &[Bar];
    /// Reads a trapped part of a BAR.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Result<(), AccessError>;
    /// Writes a trapped part of a BAR.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Result<(), AccessError>;
    /// Sets a BAR's address before the guest runs or as the function is plugged in.
    fn place_bar(&self, bar: u8, address: u64);
    /// The function has left the bus: stop all work on guest memory before returning.
    fn removed(&self);
}

/// One base address register and what is behind it.
pub struct Bar {
    /// Register index, 0..=5. A 64-bit BAR takes `index` and `index + 1`.
    pub index: u8,
    /// Bytes; a power of two, at least 4096.
    pub size: u64,
    /// 64-bit memory BAR; otherwise 32-bit memory.
    pub is_64bit: bool,
    /// Prefetchable bit.
    pub prefetchable: bool,
    /// Parts, ascending, not overlapping; what no region covers is trapped too.
    pub regions: Vec<Region>,
}

/// A part of a BAR with special treatment.
pub enum Region {
    /// Accesses are trapped, but a write at `offset` (from the BAR's start) signals `event` in the kernel.
    Doorbell {
        /// From the start of the BAR.
        offset: u64,
        /// What a write signals.
        event: Arc<EventFd>,
    },
    /// Host memory the guest reaches without a trap.
    Mapped {
        /// From the start of the BAR.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Host virtual address, valid as long as the function lives.
        host_address: u64,
        /// The guest may not write.
        read_only: bool,
    },
}

/// What a configuration write changed for the bus, as values: the segment applies it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ConfigEffects {
    /// For each BAR whose decoded place changed: (BAR index, address before, address now). `None` means it is
    /// not decoded (memory space disabled).
    pub moved: Vec<(u8, Option<u64>, Option<u64>)>,
}
