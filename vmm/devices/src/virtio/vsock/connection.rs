//! One stream connection: credit, half-closes, and the socket whose other end the caller has.
//!
//! ```text
//!   connecting ──RESPONSE──► established ──both directions shut, or RST──► draining ──buffer empty──► gone
//! ```
//! Guest to host: what the socket does not take is kept here, at most the credit the guest was given. Host to
//! guest: nothing is kept; the socket is read only when the guest has room.

use std::collections::VecDeque;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

use super::packet::Header;
use super::packet::SHUTDOWN_RECEIVE;
use super::packet::SHUTDOWN_SEND;

/// Bytes the guest may send ahead of what the caller has taken.
pub(super) const BUFFER_SIZE: u32 = 256 << 10;

/// The connection's name: port on the host, port in the guest.
pub(super) type Key = (u32, u32);

/// What the guest did that ends a connection at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation;

pub(super) struct Connection {
    pub(super) key: Key,
    stream: UnixStream,
    /// The guest has accepted (or asked).
    pub(super) established: bool,
    /// The guest has no part in it any more; what is buffered still goes to the caller.
    pub(super) draining: bool,
    /// Bytes from the guest that the socket has not taken yet.
    buffer: VecDeque<u8>,
    /// Bytes from the guest the socket has taken, and the value last told.
    forwarded: u32,
    told: u32,
    /// The guest's credit: its buffer, what it has taken, what it was sent.
    guest_buffer: u32,
    guest_forwarded: u32,
    sent: u32,
    /// The socket had data or its end when last looked at.
    pub(super) readable: bool,
    /// The caller's end of file was seen and told.
    pub(super) input_ended: bool,
    /// SHUTDOWN flags the guest has sent.
    guest_shutdown: u32,
    /// What the event loop waits for: (readable, writable); `None`: nothing, so not registered.
    pub(super) registered: Option<(bool, bool)>,
}

impl Connection {
    pub(super) fn new(key: Key, stream: UnixStream, established: bool) -> Self {
        Self {
            key,
            stream,
            established,
            draining: false,
            buffer: VecDeque::new(),
            forwarded: 0,
            told: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            sent: 0,
            readable: false,
            input_ended: false,
            guest_shutdown: 0,
            registered: None,
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Takes over what every packet of the guest says about its buffer.
    pub(super) fn learn_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buffer_size;
        self.guest_forwarded = header.forwarded;
    }

    /// Bytes the guest has room for (virtio 1.2 §5.10.6.3).
    pub(super) fn credit(&self) -> u32 {
        // Wrapping on purpose: both counters run freely. A guest that lies gets at most its own buffer.
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(in_flight)
    }

    /// What goes into our headers; from here on the guest has been told.
    pub(super) fn tell_credit(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (BUFFER_SIZE, self.forwarded)
    }

    /// The guest knows of so little room that it should hear of more.
    pub(super) fn should_update_credit(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= BUFFER_SIZE / 2
    }

    /// Data from the guest.
    pub(super) fn receive(&mut self, mut data: &[u8]) -> Result<(), Violation> {
        let room = BUFFER_SIZE as usize - self.buffer.len();
        if !self.established || self.guest_shutdown & SHUTDOWN_SEND != 0 || data.len() > room {
            return Err(Violation);
        }
        if self.buffer.is_empty() {
            let taken = self.write(data)?;
            data = &data[taken..];
        }
        self.buffer.extend(data);
        Ok(())
    }

    /// The socket has room: passes on what is kept.
    pub(super) fn flush(&mut self) -> Result<(), Violation> {
        while !self.buffer.is_empty() {
            // Moved out and back for the borrow; no copy.
            let buffer = std::mem::take(&mut self.buffer);
            let taken = self.write(buffer.as_slices().0);
            self.buffer = buffer;
            match taken? {
                0 => return Ok(()),
                taken => drop(self.buffer.drain(..taken)),
            }
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || self.draining {
            // Fails only if the caller is gone, who then does not need to hear it.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Writes what the socket takes. A caller that is gone is a violation: the connection is over.
    fn write(&mut self, data: &[u8]) -> Result<usize, Violation> {
        let mut taken = 0;
        while taken < data.len() {
            match self.stream.write(&data[taken..]) {
                Ok(count) => taken += count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Violation),
            }
        }
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(taken).unwrap_or(u32::MAX));
        Ok(taken)
    }

    /// Something waits for the socket to become writable.
    pub(super) fn has_output(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether the caller's data is wanted at all.
    pub(super) fn takes_input(&self) -> bool {
        let open = self.guest_shutdown & SHUTDOWN_RECEIVE == 0;
        self.established && !self.draining && !self.input_ended && open
    }

    /// Data for the guest, at most `room` bytes: `Some(0)` is the caller's end of file, `None` nothing yet.
    pub(super) fn read(&mut self, room: &mut [u8]) -> Result<Option<usize>, Violation> {
        loop {
            match self.stream.read(room) {
                Ok(count) => {
                    self.sent = self.sent.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
                    return Ok(Some(count));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Violation),
            }
        }
    }

    /// After end of file: the SHUTDOWN flags to send. A caller that closed its end, and did not only shut
    /// down writing, takes nothing any more either.
    pub(super) fn end_input(&mut self) -> u32 {
        self.input_ended = true;
        let mut poll =
            [rustix::event::PollFd::from_borrowed_fd(self.stream.as_fd(), rustix::event::PollFlags::empty())];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let closed = rustix::event::poll(&mut poll, Some(&now)).is_ok()
            && poll[0].revents().contains(rustix::event::PollFlags::HUP);
        if closed { SHUTDOWN_SEND | SHUTDOWN_RECEIVE } else { SHUTDOWN_SEND }
    }

    /// The guest shut down directions. True if both are now shut.
    pub(super) fn guest_shut_down(&mut self, flags: u32) -> bool {
        self.guest_shutdown |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            // The caller's writes then fail with EPIPE, as with any socket.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.guest_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND
    }
}
