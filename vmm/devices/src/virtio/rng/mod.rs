//! virtio-rng (virtio 1.2 §5.4): entropy from the host kernel.

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;

use event_manager::EventSet;
use vm_memory::GuestAddressSpace;

use super::device::ActivateError;
use super::device::Activation;
use super::device::ActiveQueue;
use super::device::DeviceState;
use super::device::VirtioDevice;
use super::queue;
use crate::io_thread::Handler;
use crate::io_thread::Hung;
use crate::io_thread::Interest;
use crate::io_thread::Pausable;
use crate::io_thread::Work;

#[cfg(test)]
mod tests;

const QUEUE_SIZES: &[u16] = &[64];
/// Most bytes given for one request: a driver asks for at most 64, and a hostile one must not keep us busy.
const MOST: usize = 4096;

/// The device.
#[derive(Default)]
pub struct Rng {
    work: Work<Requests>,
}

impl Rng {
    /// A device that is idle until activated.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u16 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = activation.queues.pop().ok_or(ActivateError::QueueMissing(0))?;
        let (thread, breaks) = (activation.thread(0).clone(), activation.breaks());
        let fd = queue.notification.as_raw_fd();
        self.work.begin((&thread, "virtio-rng"), Requests { queue, activation }, &[(fd, 0)], breaks)?;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Hung> {
        self.work.end().map(drop)
    }

    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        vec![&mut self.work]
    }

    fn save(&self) -> DeviceState {
        DeviceState::of(self.work.paused().map(|requests| &requests.queue))
    }
}

struct Requests {
    queue: ActiveQueue,
    activation: Activation,
}

impl Requests {
    fn serve(&mut self) -> ControlFlow<()> {
        let memory = self.activation.memory.memory();
        let served = queue::serve(&mut self.queue, &memory, &self.activation.interrupt, |memory, chain| {
            let mut writer = chain.writer(memory)?;
            let wanted = writer.available_bytes().min(MOST);
            let mut bytes = vec![0; wanted];
            let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
                .unwrap_or_default();
            std::io::Write::write_all(&mut writer, &bytes[..filled]).map_err(queue::ChainError::Memory)?;
            Ok(u32::try_from(filled).expect("at most 4096"))
        });
        queue::stop_if_malformed("virtio-rng", served, &self.activation.interrupt)
    }
}

impl Handler for Requests {
    fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
        self.serve()
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        queue::clear(&self.queue);
        self.serve()
    }
}
