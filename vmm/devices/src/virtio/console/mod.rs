//! virtio-console (virtio 1.2 §5.3), one port, output only: a console that costs the guest one notification a
//! line where the serial port costs one trap a character.
//!
//! The receive queue is there because the specification wants it; nothing ever comes in.

use std::io::Read;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::EventSet;
use parking_lot::Mutex;
use vm_memory::GuestAddressSpace;

use super::device::ActivateError;
use super::device::Activation;
use super::device::ActiveQueue;
use super::device::DeviceState;
use super::device::VirtioDevice;
use super::queue;
use super::queue::ChainError;
use crate::io_thread::Handler;
use crate::io_thread::Hung;
use crate::io_thread::Interest;
use crate::io_thread::Pausable;
use crate::io_thread::Work;

#[cfg(test)]
mod tests;

/// Receive, transmit.
const QUEUE_SIZES: &[u16] = &[16, 64];
const TRANSMIT: u16 = 1;

/// Feature bit: the driver may write single characters to a configuration register before it has queues.
const F_EMERG_WRITE: u64 = 1 << 2;
/// Offset of that register, emerg_wr.
const EMERGENCY: u64 = 8;

/// Most bytes taken from one request; a driver sends a line or a page. What is more is dropped.
const MOST: u64 = 64 << 10;
/// Bytes copied at a time.
const PIECE: usize = 4096;

type Sink = Arc<Mutex<Box<dyn Write + Send>>>;

/// The device.
pub struct Console {
    sink: Sink,
    work: Work<Output>,
}

impl Console {
    /// Output goes to `sink`, which must neither block for long nor fail for good.
    pub fn new(sink: Box<dyn Write + Send>) -> Self {
        Self { sink: Arc::new(Mutex::new(sink)), work: Work::default() }
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u16 {
        3
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_EMERG_WRITE
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERGENCY, [character, ..]) = (offset, data) {
            // A sink that refuses a byte has nothing to tell the guest.
            let _ = self.sink.lock().write_all(&[*character]);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = activation.queues.iter().position(|queue| queue.index == TRANSMIT);
        let queue = queue.ok_or(ActivateError::QueueMissing(TRANSMIT))?;
        let queue = activation.queues.swap_remove(queue);
        let fd = queue.notification.as_raw_fd();
        let (thread, breaks) = (activation.thread(0).clone(), activation.breaks());
        let output = Output { queue, sink: self.sink.clone(), activation };
        self.work.begin((&thread, "virtio-console"), output, &[(fd, 0)], breaks)?;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Hung> {
        self.work.end().map(drop)
    }

    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        vec![&mut self.work]
    }

    fn save(&self) -> DeviceState {
        DeviceState::of(self.work.paused().map(|output| &output.queue))
    }
}

struct Output {
    queue: ActiveQueue,
    sink: Sink,
    activation: Activation,
}

impl Output {
    fn serve(&mut self) -> ControlFlow<()> {
        let memory = self.activation.memory.memory();
        let sink = &self.sink;
        let served = queue::serve(&mut self.queue, &memory, &self.activation.interrupt, |memory, chain| {
            let mut reader = chain.reader(memory)?.take(MOST);
            let mut piece = [0; PIECE];
            loop {
                match reader.read(&mut piece).map_err(ChainError::Memory)? {
                    0 => return Ok(0),
                    count => {
                        // As above.
                        let _ = sink.lock().write_all(&piece[..count]);
                    }
                }
            }
        });
        queue::stop_if_malformed("virtio-console", served, &self.activation.interrupt)
    }
}

impl Handler for Output {
    fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
        self.serve()
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        queue::clear(&self.queue);
        self.serve()
    }
}
