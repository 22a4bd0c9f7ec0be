//! virtio-balloon (virtio 1.2 §5.5): the guest gives memory back to the host, by inflating the balloon to the
//! size the host asks for, and by reporting pages that are free anyway (§5.5.6.7).
//!
//! Either way the pages' contents are lost, and a page is there again as soon as the guest touches it. So the
//! balloon is a favour of the guest's, never a limit. While a device keeps guest RAM pinned (VFIO), nothing is
//! given back, and the guest is none the wiser.
//!
//! `worker` takes pages from the queues, `blocks` collects those that belong together, `reclaim` returns them to the
//! host, `control` is what the host holds.

mod blocks;
mod control;
mod reclaim;
#[cfg(test)]
mod tests;
mod worker;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::device::ActivateError;
use super::device::Activation;
use super::device::DeviceState;
use super::device::OwnState;
use super::device::VirtioDevice;
use super::device::WrongState;
use crate::io_thread::Hung;
use crate::io_thread::Pausable;
use crate::io_thread::Work;
use crate::platform::Discards;
use worker::Pages;

pub use control::BalloonControl;

/// Feature bits (§5.5.3).
const F_MUST_TELL_HOST: u64 = 1 << 0;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

/// Inflate, deflate, reporting. Drivers count only the queues of features that are offered, so reporting comes
/// third here.
const QUEUE_SIZES: &[u16] = &[128, 128, 128];
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

/// Pages of the device's own size, whatever the guest's (§5.5).
const PAGE: u64 = 4096;

/// Offset of `actual`, the only configuration field a driver writes here (§5.5.4).
const ACTUAL: u64 = 4;

/// The device.
#[derive(Default)]
pub struct Balloon {
    control: BalloonControl,
    /// Who says when pages may go; always, if nobody does.
    discards: Option<Arc<dyn Discards>>,
    work: Work<Pages>,
}

impl Balloon {
    /// An empty balloon.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty balloon of a machine whose RAM may be pinned.
    pub fn unless_pinned(discards: Arc<dyn Discards>) -> Self {
        Self { control: BalloonControl::default(), discards: Some(discards), work: Work::default() }
    }

    /// The host's end. It outlives the device.
    pub fn control(&self) -> BalloonControl {
        self.control.clone()
    }
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> u16 {
        5
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_MUST_TELL_HOST | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let [target, actual] = self.control.pages().map(u32::to_le_bytes);
        let config = [target, actual].concat();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        let count = (config.len() - from).min(data.len());
        data[..count].copy_from_slice(&config[from..from + count]);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, &[a, b, c, d]) = (offset, data) {
            self.control.set_actual(u32::from_le_bytes([a, b, c, d]));
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = std::mem::take(&mut activation.queues);
        for needed in [INFLATE, DEFLATE] {
            if !queues.iter().any(|queue| queue.index == needed) {
                return Err(ActivateError::QueueMissing(needed));
            }
        }
        let descriptors: Vec<_> =
            queues.iter().map(|queue| (queue.notification.as_raw_fd(), u32::from(queue.index))).collect();
        let interrupt = activation.interrupt.clone();
        let (thread, breaks) = (activation.thread(0).clone(), activation.breaks());
        let pages = Pages::new(queues, activation, self.control.clone(), self.discards.clone());
        self.work.begin((&thread, "virtio-balloon"), pages, &descriptors, breaks)?;
        self.control.connect(Some(interrupt));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Hung> {
        self.control.connect(None);
        self.work.end()?;
        self.control.set_actual(0);
        Ok(())
    }

    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        vec![&mut self.work]
    }

    fn save(&self) -> DeviceState {
        let [target, actual] = self.control.pages();
        let queues = self.work.paused().into_iter().flat_map(Pages::queues);
        DeviceState { own: OwnState::Balloon { target, actual }, ..DeviceState::of(queues) }
    }

    fn restore(&mut self, state: &OwnState) -> Result<(), WrongState> {
        let &OwnState::Balloon { target, actual } = state else { return Err(WrongState) };
        self.control.restore(target, actual);
        Ok(())
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        self.control.close();
    }
}
