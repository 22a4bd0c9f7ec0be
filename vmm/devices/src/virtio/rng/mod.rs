//! virtio-rng (virtio 1.2 §5.4): entropy from the host kernel.

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;

use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::device::ActivateError;
use super::device::Activation;
use super::device::ActiveQueue;
use super::device::VirtioDevice;
use super::queue;
use super::worker::Handler;
use super::worker::Interest;
use super::worker::Worker;

#[cfg(test)]
mod tests;

const QUEUE_SIZES: &[u16] = &[64];
/// Most bytes given for one request: a driver asks for at most 64, and a hostile one must not keep us busy.
const MOST: usize = 4096;

/// The device.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker<Requests>>,
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
        let fd = queue.notification.as_raw_fd();
        let worker = Worker::spawn("virtio-rng", Requests { queue, activation }, &[(fd, 0)])
            .map_err(|source| ActivateError::Host { step: "spawn the rng thread", source })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
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
    fn start(&mut self, _: &Interest) -> ControlFlow<()> {
        self.serve()
    }

    fn ready(&mut self, _: u64, _: EventSet, _: &Interest) -> ControlFlow<()> {
        queue::clear(&self.queue);
        self.serve()
    }
}
