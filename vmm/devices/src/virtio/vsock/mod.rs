//! virtio-vsock (virtio 1.2 §5.10) with the host's side inside this process: stream sockets only.
//!
//! ```text
//!   guest ◄─ receive queue ── worker ── connections ── connection ── socket pair ─► caller
//!         ── transmit queue ─►   (packets)   (who is meant)  (credit, half-closes)
//! ```
//! Each connection is one end of a stream socket pair: the caller gets the other end and uses it like any
//! socket. Half-close is end of file, a full buffer is back-pressure through vsock credit, a caller that
//! closes is a clean disconnect. Bytes move between the socket and guest memory by one system call.
//!
//! Memory a guest can make us use is bounded: [`MOST_CONNECTIONS`] connections with [`BUFFER_SIZE`] bytes
//! each, and [`MOST_REFUSALS`] answers to packets of no connection. With more to answer than there is room,
//! packets wait in the guest.

mod connection;
mod connections;
mod events;
mod packet;
mod ports;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;

use super::device::ActivateError;
use super::device::Activation;
use super::device::DeviceState;
use super::device::OwnState;
use super::device::VirtioDevice;
use super::device::WrongState;
use crate::io_thread::Hung;
use crate::io_thread::Interest;
use crate::io_thread::Pausable;
use crate::io_thread::Work;
use crate::io_thread::os;
use crate::platform::Role;
use events::Events;
use worker::Packets;

pub use ports::Accept;
pub use ports::PortInUse;
pub use ports::VsockPorts;

/// `VIRTIO_VSOCK_F_STREAM` (§5.10.3).
const F_STREAM: u64 = 1 << 0;
/// Receive, transmit, event. A Linux guest fills the first with buffers of 4 KiB at once.
const QUEUE_SIZES: &[u16] = &[128, 128, 16];
/// Bytes the guest may send on a connection ahead of what the caller has taken.
const BUFFER_SIZE: u32 = 256 << 10;
/// Connections at a time; further ones are refused. Each costs the host a socket pair.
const MOST_CONNECTIONS: usize = 1024;
/// Refusals waiting for the receive queue before the transmit queue is left alone.
const MOST_REFUSALS: usize = 64;

/// The device.
pub struct Vsock {
    guest_cid: u64,
    ports: Arc<VsockPorts>,
    /// The driver is yet to be told that its streams are gone.
    restored: bool,
    work: Work<Packets>,
}

impl Vsock {
    /// A device whose guest has context identifier `guest_cid` (3 or more) and whose host side is `ports`.
    pub fn new(guest_cid: u64, ports: Arc<VsockPorts>) -> Self {
        ports.open();
        Self { guest_cid, ports, restored: false, work: Work::default() }
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u16 {
        19
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn threads(&self) -> Vec<Role> {
        vec![Role::Sockets]
    }

    fn features(&self) -> u64 {
        F_STREAM
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
        let (receive, transmit) = (next(0)?, next(1)?);
        let events = Events::new(next(2).ok(), std::mem::take(&mut self.restored));
        let (thread, breaks) = (activation.thread(0).clone(), activation.breaks());
        let packets =
            Packets::new(self.guest_cid, self.ports.clone(), (receive, transmit, events), activation);
        let descriptors = packets.descriptors();
        self.work.begin((&thread, "virtio-vsock"), packets, &descriptors, breaks)?;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Hung> {
        // Closes every stream; listeners stay, and so does what was asked for and not begun.
        self.work.end().map(drop)
    }

    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        vec![&mut self.work]
    }

    fn save(&self) -> DeviceState {
        DeviceState::of(self.work.paused().into_iter().flat_map(Packets::queues))
    }

    /// Streams do not come with it: the driver is told so as soon as it is active.
    fn restore(&mut self, state: &OwnState) -> Result<(), WrongState> {
        self.restored = true;
        if *state == OwnState::None { Ok(()) } else { Err(WrongState) }
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // That its thread hangs has been said.
        let _ = self.reset();
        self.ports.close();
    }
}
