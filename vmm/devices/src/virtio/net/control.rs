//! The control queue (virtio 1.2 §5.1.6.5): how many queue pairs the driver uses.

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;

use event_manager::EventSet;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::report;
use super::taps::Taps;
use crate::io_thread::Handler;
use crate::io_thread::Interest;
use crate::platform::GuestMemory;
use crate::virtio::buffers::Buffers;
use crate::virtio::buffers::ChainBuffers;
use crate::virtio::device::ActiveQueue;
use crate::virtio::device::VirtioInterrupt;
use crate::virtio::queue;
use crate::virtio::queue::ChainError;

/// `VIRTIO_NET_CTRL_MQ` and its command `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
const PAIRS_SET: [u8; 2] = [4, 0];
/// `VIRTIO_NET_OK` and `VIRTIO_NET_ERR`.
const OK: u8 = 0;
const ERROR: u8 = 1;

/// What is on the first pair's thread besides that pair.
pub(super) struct Control {
    queue: ActiveQueue,
    taps: Arc<Taps>,
    /// Pairs whose queues the driver has enabled; 0 if it did not agree on several.
    pairs: usize,
    memory: GuestMemory,
    interrupt: Arc<dyn VirtioInterrupt>,
}

impl Control {
    pub(super) fn new(
        queue: ActiveQueue,
        taps: Arc<Taps>,
        pairs: usize,
        memory: GuestMemory,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> Self {
        Self { queue, taps, pairs, memory, interrupt }
    }

    pub(super) fn descriptors(&self) -> [(RawFd, u32); 1] {
        [(self.queue.notification.as_raw_fd(), 0)]
    }

    pub(super) fn queue(&self) -> &ActiveQueue {
        &self.queue
    }

    fn serve(&mut self) -> ControlFlow<()> {
        let memory = self.memory.memory();
        let size = self.queue.queue.size();
        let (taps, pairs) = (&self.taps, self.pairs);
        let served = queue::serve(&mut self.queue, &memory, &self.interrupt, |memory, chain| {
            let ChainBuffers { readable, writable, .. } = ChainBuffers::new(memory, chain, size)?;
            if writable.is_empty() {
                return Err(ChainError::Layout("a command without room for its answer"));
            }
            let answer = if command(&readable, taps, pairs) { OK } else { ERROR };
            writable.copy_from(0, &[answer]);
            Ok(1)
        });
        queue::stop_if_malformed("virtio-net", served, &self.interrupt)
    }
}

/// Obeys a command; false if it is not one we have offered.
fn command(request: &Buffers<'_>, taps: &Taps, most: usize) -> bool {
    let mut bytes = [0; 4];
    let length = request.copy_to(&mut bytes);
    let pairs = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
    if length < bytes.len() || bytes[..2] != PAIRS_SET || !(1..=most).contains(&pairs) {
        return false;
    }
    let used = taps.use_pairs(pairs);
    if used.is_ok() {
        taps.set_pairs(pairs);
    }
    used.inspect_err(|e| report(&format!("cannot use {pairs} queues of the tap"), e)).is_ok()
}

impl Handler for Control {
    fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
        self.serve()
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        queue::clear(&self.queue);
        self.serve()
    }

    fn stop(&mut self) {
        // No frames for queues that nobody serves.
        if let Err(e) = self.taps.use_pairs(1) {
            report("cannot detach queues of the tap", &e);
        }
    }
}
