//! Routing of trapped accesses (MMIO and PIO) to the device that owns the range.
//!
//! The bus, not the device, decides what a bad access yields: reads are filled with ones, writes are dropped,
//! and the fault is logged at a bounded rate.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::log_limit::LogLimit;

/// A device behind a range of addresses. Called on vCPU threads, from several at once.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset` within the device's range. 1, 2, 4 or 8, but a guest has
    /// instructions that ask for 3 or 6 as well.
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError>;
    /// Writes `data.len()` bytes at `offset` within the device's range; as many as may be read.
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

/// The range is taken, empty or past the end of the address space; the bus is as it was.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("range {start:#x}+{length:#x} is taken or impossible")]
pub struct InsertError {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// One address space. The lock is held only to look a device up, never while it is called.
pub struct Bus {
    name: &'static str,
    ranges: RwLock<BTreeMap<u64, Range>>,
    faults: LogLimit,
}

#[derive(Clone)]
struct Range {
    length: u64,
    device: Arc<dyn BusDevice>,
}

impl Bus {
    /// An empty bus; `name` is for its log lines.
    pub fn new(name: &'static str) -> Self {
        Self { name, ranges: RwLock::default(), faults: LogLimit::new() }
    }

    /// Puts a device at `start`.
    pub fn insert(&self, start: u64, length: u64, device: Arc<dyn BusDevice>) -> Result<(), InsertError> {
        let error = InsertError { start, length };
        let last = length.checked_sub(1).and_then(|l| start.checked_add(l)).ok_or(error)?;
        let mut ranges = self.ranges.write();
        let clash = ranges.range(..=last).next_back().is_some_and(|(s, r)| s + (r.length - 1) >= start);
        if clash {
            return Err(error);
        }
        ranges.insert(start, Range { length, device });
        Ok(())
    }

    /// Takes away what starts at `start`, if anything does. An access that is under way still ends there.
    pub fn remove(&self, start: u64) {
        self.ranges.write().remove(&start);
    }

    /// Reads for the guest. All ones where nothing answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let result = match self.find(address, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => Err(AccessError::NoRegister(address)),
        };
        if let Err(e) = result {
            data.fill(0xff);
            self.fault("read", address, data.len(), e);
        }
    }

    /// Writes for the guest. Dropped where nothing answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        let result = match self.find(address, data.len()) {
            Some((offset, device)) => device.write(offset, data),
            None => Err(AccessError::NoRegister(address)),
        };
        if let Err(e) = result {
            self.fault("write", address, data.len(), e);
        }
    }

    /// The device that owns all of the access; one that straddles an end belongs to nobody.
    fn find(&self, address: u64, width: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let ranges = self.ranges.read();
        let (start, range) = ranges.range(..=address).next_back()?;
        let offset = address - start;
        let end = offset.checked_add(width as u64)?;
        (end <= range.length).then(|| (offset, range.device.clone()))
    }

    fn fault(&self, what: &str, address: u64, width: usize, error: AccessError) {
        if self.faults.allows() {
            tracing::debug!("{} {what} of {width} at {address:#x}: {error}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain;
    impl BusDevice for Plain {
        fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
            data.fill(u8::try_from(offset).unwrap());
            Ok(())
        }
        fn write(&self, offset: u64, _: &[u8]) -> Result<(), AccessError> {
            Err(AccessError::NoRegister(offset))
        }
    }

    #[test]
    fn accesses_reach_the_owner_of_the_whole_range() {
        let bus = Bus::new("test");
        bus.insert(0x1000, 0x10, Arc::new(Plain)).unwrap();
        let read = |address, width| {
            let mut data = vec![0; width];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x1004, 2), [4, 4]);
        assert_eq!(read(0x100e, 4), [0xff; 4], "straddles the end");
        assert_eq!(read(0xfff, 1), [0xff]);
        assert_eq!(read(0x1010, 1), [0xff]);
        assert_eq!(read(u64::MAX, 8), [0xff; 8]);
        bus.write(0x1000, &[1]);
    }

    #[test]
    fn ranges_do_not_overlap() {
        let bus = Bus::new("test");
        bus.insert(0x1000, 0x1000, Arc::new(Plain)).unwrap();
        for (start, length) in [(0x1000, 1), (0x1fff, 1), (0xfff, 2), (0, u64::MAX), (0x800, 0x4000), (5, 0)]
        {
            assert!(bus.insert(start, length, Arc::new(Plain)).is_err(), "{start:#x}+{length:#x}");
        }
        assert!(bus.insert(u64::MAX, 2, Arc::new(Plain)).is_err());
        bus.insert(0x2000, 1, Arc::new(Plain)).unwrap();
        bus.insert(0xfff, 1, Arc::new(Plain)).unwrap();
        bus.remove(0x1000);
        bus.insert(0x1000, 0x1000, Arc::new(Plain)).unwrap();
    }
}
