//! The host's end of a balloon.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Condvar;
use parking_lot::Mutex;

use super::PAGE;
use crate::virtio::device::VirtioInterrupt;

/// Says how large the balloon should be and sees how large it is. Clones are the same balloon's.
#[derive(Clone, Default)]
pub struct BalloonControl(Arc<State>);

#[derive(Default)]
struct State {
    sizes: Mutex<Sizes>,
    changed: Condvar,
    returned: AtomicU64,
}

/// In pages of 4 KiB.
#[derive(Default)]
struct Sizes {
    target: u32,
    actual: u32,
    /// While the driver is ready.
    interrupt: Option<Arc<dyn VirtioInterrupt>>,
    /// The device is gone, so nothing will change any more.
    closed: bool,
}

impl BalloonControl {
    /// Asks the guest for a balloon of `bytes`, rounded down to pages; 16 TiB at most. The guest follows when
    /// it can, or later when it has a driver.
    pub fn set_target(&self, bytes: u64) {
        let mut sizes = self.0.sizes.lock();
        sizes.target = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        if let Some(interrupt) = &sizes.interrupt {
            interrupt.config_changed();
        }
    }

    /// Bytes asked for.
    pub fn target(&self) -> u64 {
        u64::from(self.0.sizes.lock().target) * PAGE
    }

    /// Bytes the guest says are in the balloon.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.sizes.lock().actual) * PAGE
    }

    /// Waits until `done` says so of the bytes in the balloon, but not beyond `deadline`, nor for a device that is
    /// gone.
    pub fn wait(&self, mut done: impl FnMut(u64) -> bool, deadline: Instant) -> u64 {
        let mut sizes = self.0.sizes.lock();
        while !done(u64::from(sizes.actual) * PAGE) && !sizes.closed {
            if self.0.changed.wait_until(&mut sizes, deadline).timed_out() {
                break;
            }
        }
        u64::from(sizes.actual) * PAGE
    }

    /// Bytes given back to the host so far, a page as often as it was given back.
    pub fn returned(&self) -> u64 {
        self.0.returned.load(Ordering::Relaxed)
    }

    pub(super) fn count_returned(&self, bytes: u64) {
        self.0.returned.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn pages(&self) -> [u32; 2] {
        let sizes = self.0.sizes.lock();
        [sizes.target, sizes.actual]
    }

    /// Before the driver is ready.
    pub(super) fn restore(&self, target: u32, actual: u32) {
        let mut sizes = self.0.sizes.lock();
        (sizes.target, sizes.actual) = (target, actual);
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.0.sizes.lock().actual = pages;
        self.0.changed.notify_all();
    }

    pub(super) fn connect(&self, interrupt: Option<Arc<dyn VirtioInterrupt>>) {
        self.0.sizes.lock().interrupt = interrupt;
    }

    pub(super) fn close(&self) {
        self.0.sizes.lock().closed = true;
        self.0.changed.notify_all();
    }
}
