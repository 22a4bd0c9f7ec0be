//! The host's end: how much is to be plugged, and how much is.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Condvar;
use parking_lot::Mutex;

use super::MemRegion;
use super::USABLE_STEP;
use super::blocks::Blocks;
use crate::platform::PluggableRam;
use crate::virtio::device::OwnState;
use crate::virtio::device::VirtioInterrupt;
use crate::virtio::device::WrongState;

/// Says how much memory the guest should plug and sees how much it has. Clones are the same device's.
#[derive(Clone)]
pub struct MemControl(Arc<State>);

struct State {
    region: MemRegion,
    sizes: Mutex<Current>,
    changed: Condvar,
    /// Locked for the whole of a request; before `sizes`, where both are.
    blocks: Mutex<Blocks>,
}

/// Bytes of memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemSizes {
    /// The host wants so many plugged.
    pub requested: u64,
    /// So many are.
    pub plugged: u64,
    /// So many can be.
    pub most: u64,
}

struct Current {
    requested: u64,
    plugged: u64,
    /// Of the region, so much can be plugged. Never less than where the last plugged block ends, so it only
    /// grows, until nothing is plugged.
    usable: u64,
    /// While the driver is ready.
    interrupt: Option<Arc<dyn VirtioInterrupt>>,
    /// The device is gone, so nothing will change any more.
    closed: bool,
}

/// A size the device cannot have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{bytes} bytes of memory cannot be plugged: at most {most}, in blocks of {block}")]
pub struct RequestSizeError {
    /// Asked for.
    pub bytes: u64,
    /// The most there is.
    pub most: u64,
    /// Bytes of a block.
    pub block: u64,
}

impl MemControl {
    pub(super) fn new(region: MemRegion) -> Self {
        let count = usize::try_from(region.length / region.block).expect("x86-64 only: usize has 64 bits");
        let sizes = Current { requested: 0, plugged: 0, usable: 0, interrupt: None, closed: false };
        Self(Arc::new(State {
            region,
            sizes: Mutex::new(sizes),
            changed: Condvar::new(),
            blocks: Mutex::new(Blocks::new(count)),
        }))
    }

    /// Asks the guest to have `bytes` plugged, more or fewer than now. It follows when it can, or later when it
    /// has a driver.
    pub fn request(&self, bytes: u64) -> Result<(), RequestSizeError> {
        let MemRegion { length: most, block, .. } = self.0.region;
        if bytes > most || !bytes.is_multiple_of(block) {
            return Err(RequestSizeError { bytes, most, block });
        }
        let mut sizes = self.0.sizes.lock();
        sizes.requested = bytes;
        sizes.usable = sizes.usable.max(self.usable_for(bytes));
        self.0.changed.notify_all();
        if let Some(interrupt) = &sizes.interrupt {
            interrupt.config_changed();
        }
        Ok(())
    }

    /// How much is asked for and plugged now.
    pub fn sizes(&self) -> MemSizes {
        self.of(&self.0.sizes.lock())
    }

    /// Bytes of a block: what can be asked for is a multiple.
    pub fn block(&self) -> u64 {
        self.0.region.block
    }

    /// Waits until `done` says so of the sizes, but not beyond `deadline`, nor for a device that is gone.
    pub fn wait(&self, done: impl Fn(MemSizes) -> bool, deadline: Instant) -> MemSizes {
        let mut sizes = self.0.sizes.lock();
        while !done(self.of(&sizes)) && !sizes.closed {
            if self.0.changed.wait_until(&mut sizes, deadline).timed_out() {
                break;
            }
        }
        self.of(&sizes)
    }

    fn of(&self, sizes: &Current) -> MemSizes {
        MemSizes { requested: sizes.requested, plugged: sizes.plugged, most: self.0.region.length }
    }

    fn usable_for(&self, requested: u64) -> u64 {
        requested.next_multiple_of(USABLE_STEP).min(self.0.region.length)
    }

    pub(super) fn region(&self) -> MemRegion {
        self.0.region
    }

    pub(super) fn blocks(&self) -> &Mutex<Blocks> {
        &self.0.blocks
    }

    /// Bytes from the region's start that can be plugged.
    pub(super) fn usable(&self) -> u64 {
        self.0.sizes.lock().usable
    }

    /// Bytes that may be plugged besides what is.
    pub(super) fn room(&self) -> u64 {
        let sizes = self.0.sizes.lock();
        sizes.requested.saturating_sub(sizes.plugged)
    }

    pub(super) fn count_plugged(&self, bytes: u64) {
        self.0.sizes.lock().plugged += bytes;
        self.0.changed.notify_all();
    }

    pub(super) fn count_unplugged(&self, bytes: u64) {
        self.0.sizes.lock().plugged -= bytes;
        self.0.changed.notify_all();
    }

    /// Nothing is plugged: what is usable can be as little as is asked for (§5.15.6.4).
    pub(super) fn shrink_usable(&self) {
        let mut sizes = self.0.sizes.lock();
        let usable = self.usable_for(sizes.requested);
        if std::mem::replace(&mut sizes.usable, usable) != usable
            && let Some(interrupt) = &sizes.interrupt
        {
            interrupt.config_changed();
        }
    }

    /// Configuration space (§5.15.4): `block_size`, `node_id` and padding, `addr`, `region_size`,
    /// `usable_region_size`, `plugged_size`, `requested_size`.
    pub(super) fn config(&self) -> [u8; 56] {
        let MemRegion { address, length, block } = self.0.region;
        let sizes = self.0.sizes.lock();
        let fields = [block, 0, address, length, sizes.usable, sizes.plugged, sizes.requested];
        let mut config = [0; 56];
        for (bytes, field) in config.chunks_exact_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        config
    }

    /// What survives the machine: what is asked for, and which blocks are plugged.
    pub(super) fn save(&self) -> OwnState {
        let blocks = self.0.blocks.lock();
        let sizes = self.0.sizes.lock();
        OwnState::Mem { requested: sizes.requested, usable: sizes.usable, plugged: blocks.bits().to_vec() }
    }

    /// Takes it over, of a device of the same region with nothing plugged, and plugs the same blocks of `memory`.
    pub(super) fn restore(&self, state: &OwnState, memory: &dyn PluggableRam) -> Result<(), WrongState> {
        let OwnState::Mem { requested, usable, plugged } = state else { return Err(WrongState) };
        let MemRegion { length, block, .. } = self.0.region;
        let fits = |bytes: u64| bytes <= length && bytes.is_multiple_of(block);
        let mut blocks = self.0.blocks.lock();
        if !fits(*requested) || !fits(*usable) || !blocks.is_empty() || !blocks.set_bits(plugged) {
            return Err(WrongState);
        }
        let mut bytes = 0;
        for run in blocks.runs() {
            let (start, count) = (run.start as u64 * block, run.len() as u64 * block);
            if start + count > *usable {
                return Err(WrongState);
            }
            memory.plug(start, count).map_err(|error| {
                tracing::error!("virtio-mem: plug {start:#x}+{count:#x} of the region again: {error}");
                WrongState
            })?;
            bytes += count;
        }
        let mut sizes = self.0.sizes.lock();
        (sizes.requested, sizes.usable, sizes.plugged) = (*requested, *usable, bytes);
        Ok(())
    }

    pub(super) fn connect(&self, interrupt: Option<Arc<dyn VirtioInterrupt>>) {
        self.0.sizes.lock().interrupt = interrupt;
    }

    pub(super) fn close(&self) {
        self.0.sizes.lock().closed = true;
        self.0.changed.notify_all();
    }
}
