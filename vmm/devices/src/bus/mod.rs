//! Routing of trapped accesses (MMIO and PIO) to the device that owns the range.
//!
//! The bus, not the device, decides what a bad access yields: reads are filled with ones, writes are dropped,
//! and the fault is logged at a bounded rate.

/// A device behind a range of addresses. Called on vCPU threads, from several at once.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset` within the device's range.
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError>;
    /// Writes `data.len()` bytes (1, 2, 4 or 8) at `offset` within the device's range.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError>;
}

/// What the guest did that the device does not define.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum AccessError {
    /// Nothing is at that offset.
    #[error("no register at offset {0:#x}")]
    NoRegister(u64),
    /// The register exists but not in this width.
    #[error("access of {width} bytes at offset {offset:#x}")]
    Width {
        /// Offset in the device's range.
        offset: u64,
        /// Bytes asked for.
        width: usize,
    },
}
