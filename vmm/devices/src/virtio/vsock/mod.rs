//! virtio-vsock (virtio 1.2 §5.10) with the host's side inside this process.
//!
//! Each connection is one end of a stream socket pair: the caller gets the other end and uses it like any
//! socket. Half-close is end of file, a full buffer is back-pressure through vsock credit.
//!
//! `ports` is what callers hold, `packet` the wire format, `connection` one stream, `muxer` the device's
//! thread.

mod connection;
mod muxer;
mod packet;
mod ports;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::device::ActivateError;
use super::device::Activation;
use super::device::VirtioDevice;
use super::worker::Worker;
use muxer::Muxer;

pub use ports::Accept;
pub use ports::PortInUse;
pub use ports::VsockPorts;

/// Receive, transmit, event.
const QUEUE_SIZES: &[u16] = &[256, 256, 16];

/// The device.
pub struct Vsock {
    guest_cid: u64,
    ports: Arc<VsockPorts>,
    worker: Option<Worker<Muxer>>,
}

impl Vsock {
    /// A device whose guest has context identifier `guest_cid` (3 or more) and whose host side is `ports`.
    pub fn new(guest_cid: u64, ports: Arc<VsockPorts>) -> Self {
        Self { guest_cid, ports, worker: None }
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u16 {
        19
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.guest_cid.to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        let count = (config.len() - from).min(data.len());
        data[..count].copy_from_slice(&config[from..from + count]);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = std::mem::take(&mut activation.queues);
        let mut queues = queues.into_iter();
        let mut next =
            |index: u16| queues.next().filter(|q| q.index == index).ok_or(ActivateError::QueueMissing(index));
        // The event queue stays unused: the context identifier never changes under a running guest.
        let (receive, transmit) = (next(0)?, next(1)?);
        let wake = self.ports.wake_fd();
        let descriptors = [
            (receive.notification.as_raw_fd(), muxer::RECEIVE),
            (transmit.notification.as_raw_fd(), muxer::TRANSMIT),
            (wake, muxer::PORTS),
        ];
        let muxer = Muxer::new(self.guest_cid, self.ports.clone(), receive, transmit, activation);
        let worker = Worker::spawn("virtio-vsock", muxer, &descriptors)
            .map_err(|source| ActivateError::Host { step: "spawn the vsock thread", source })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self) {
        // Closes every stream; listeners stay.
        self.worker = None;
    }
}
