//! One stream connection: credit, half-closes, and the socket whose other end the caller has.
//!
//! ```text
//!   requested ──RESPONSE──► established ──SHUTDOWN of both, or a broken rule──► ending
//!       │                        │                                                │ RST to the guest
//!       └──────────RST───────────┴────────────────RST from the guest──────────────┴──► detached ──► over
//! ```
//! Guest to host: what the socket does not take is kept, at most the credit the guest was given, and goes to
//! the caller even when the guest has no part in the connection any more. Host to guest: nothing is kept; the
//! socket is read only into a buffer of the guest's and for as much as its credit allows.
//!
//! Nothing is sent here. What the guest must be told is remembered as flags ([`Owed`]), so that there is
//! never more of it than fits into the connection.

use std::collections::VecDeque;
use std::io;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;

use event_manager::EventSet;

use super::BUFFER_SIZE;
use super::os::UnixStream;
use super::packet::Header;
use super::packet::Operation;
use super::packet::SHUTDOWN_BOTH;
use super::packet::SHUTDOWN_RECEIVE;
use super::packet::SHUTDOWN_SEND;
use crate::virtio::buffers;
use crate::virtio::buffers::Buffers;

/// Credit given back before the guest is told of it, if nothing else is sent that tells.
const CREDIT_STEP: u32 = BUFFER_SIZE / 2;

/// The connection's name: port on the host, port in the guest.
pub(super) type Key = (u32, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Requested,
    Established,
    /// A RST is owed; whatever the guest says meanwhile has no meaning.
    Ending,
    /// The guest has no part in it. Bytes of the guest may still be on their way to the caller.
    Detached,
}

bitflags::bitflags! {
    /// Packets to send.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Owed: u8 {
        const REQUEST = 1;
        const RESPONSE = 2;
        const RESET = 4;
        const SHUTDOWN = 8;
        const CREDIT_UPDATE = 16;
    }
}

/// What a packet to the guest says; credit and address are the same in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) operation: Operation,
    pub(super) flags: u32,
    /// Bytes of data read into the guest's buffer.
    pub(super) length: u32,
}

pub(super) struct Connection {
    pub(super) key: Key,
    /// `None`: neither direction has a use for it any more, only the guest's last word is awaited.
    stream: Option<UnixStream>,
    /// The socket has no use any more: its owner closes it.
    is_unused: bool,
    phase: Phase,
    owed: Owed,
    /// Whether it is in the queue of connections with something to send; its owner's.
    pub(super) queued: bool,

    /// Bytes from the guest that the socket has not taken yet.
    buffer: VecDeque<u8>,
    /// Bytes from the guest that were passed on (or that nobody wants), and the value last told.
    forwarded: u32,
    told: u32,

    /// The guest's credit: its buffer, what it has passed on, what it was sent.
    guest_buffer: u32,
    guest_forwarded: u32,
    sent: u32,
    /// A CREDIT_REQUEST was sent since there was credit.
    credit_asked: bool,
    /// The socket has not said that it is empty since it last said it has something.
    readable: bool,

    /// SHUTDOWN flags said by us and by the guest. Ours mean: the caller takes nothing more
    /// (`SHUTDOWN_RECEIVE`), will give nothing more (`SHUTDOWN_SEND`).
    said: u32,
    heard: u32,
    /// The caller was shown the end of what the guest sends.
    output_ended: bool,
}

impl Connection {
    /// One the guest has asked for.
    pub(super) fn accepted(key: Key, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(key, stream, Phase::Established, Owed::RESPONSE);
        connection.learn_credit(request);
        connection
    }

    /// One the caller has asked for.
    pub(super) fn requested(key: Key, stream: UnixStream) -> Self {
        Self::new(key, stream, Phase::Requested, Owed::REQUEST)
    }

    fn new(key: Key, stream: UnixStream, phase: Phase, owed: Owed) -> Self {
        Self {
            key,
            stream: Some(stream),
            is_unused: false,
            phase,
            owed,
            queued: false,
            buffer: VecDeque::new(),
            forwarded: 0,
            told: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            sent: 0,
            credit_asked: false,
            readable: false,
            said: 0,
            heard: 0,
            output_ended: false,
        }
    }

    pub(super) fn fd(&self) -> Option<RawFd> {
        self.stream.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The socket's descriptor, when neither direction has a use for it any more.
    pub(super) fn unused_fd(&self) -> Option<RawFd> {
        self.fd().filter(|_| self.is_unused)
    }

    /// Closes a socket without use, for which nobody waits any more.
    pub(super) fn forget_socket(&mut self) {
        self.stream = None;
    }

    /// The guest has no part in it: its name is free.
    pub(super) fn is_detached(&self) -> bool {
        self.phase == Phase::Detached
    }

    /// Nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.is_detached() && self.buffer.is_empty()
    }

    /// There is a packet to send (or there may be one, if the socket has data).
    pub(super) fn has_output(&self) -> bool {
        let data = self.takes_input() && self.readable && (self.credit() > 0 || !self.credit_asked);
        !self.owed.is_empty() || data
    }

    /// `buf_alloc` and `fwd_cnt` for a header (§5.10.6.3).
    pub(super) fn buffer_and_forwarded(&self) -> (u32, u32) {
        (BUFFER_SIZE, self.forwarded)
    }

    /// A packet from the guest. `data` has the length the header announces.
    pub(super) fn receive(&mut self, header: &Header, data: Buffers<'_>) {
        if self.phase == Phase::Ending {
            if header.operation == Some(Operation::Reset) {
                self.detach();
            }
            return;
        }
        self.learn_credit(header);
        match (header.operation, self.phase) {
            (Some(Operation::Reset), _) => self.detach(),
            (Some(Operation::Response), Phase::Requested) if !self.owed.contains(Owed::REQUEST) => {
                self.phase = Phase::Established;
                self.owed.set(Owed::SHUTDOWN, self.said != 0);
            }
            (Some(Operation::ReadWrite), Phase::Established) => self.take(data),
            (Some(Operation::CreditUpdate), Phase::Established) => {}
            (Some(Operation::CreditRequest), Phase::Established) => self.owed |= Owed::CREDIT_UPDATE,
            (Some(Operation::Shutdown), Phase::Established) => self.hear(header.flags & SHUTDOWN_BOTH),
            _ => self.end(),
        }
    }

    /// The guest broke a rule, or is done: it gets a RST.
    pub(super) fn end(&mut self) {
        self.phase = Phase::Ending;
        self.owed = Owed::RESET;
        self.end_output_if_drained();
    }

    /// Something happened to the socket.
    pub(super) fn ready(&mut self, events: EventSet) {
        self.readable |= events != EventSet::OUT;
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.caller_gone();
        } else if events.contains(EventSet::OUT) {
            self.flush();
        }
    }

    /// The next packet for the guest, its data (if any) in `room`, which is not empty.
    pub(super) fn next(&mut self, room: &Buffers<'_>) -> Option<Outgoing> {
        let (operation, flags, length) = self.choose(room)?;
        // Every packet tells the guest its credit.
        self.told = self.forwarded;
        self.owed.remove(Owed::CREDIT_UPDATE);
        if self.said == SHUTDOWN_BOTH && !self.owed.contains(Owed::SHUTDOWN) {
            self.is_unused = true;
        }
        Some(Outgoing { operation, flags, length })
    }

    fn choose(&mut self, room: &Buffers<'_>) -> Option<(Operation, u32, u32)> {
        if self.owed.contains(Owed::RESET) {
            self.detach();
            return Some((Operation::Reset, 0, 0));
        }
        for (owed, operation) in [
            (Owed::REQUEST, Operation::Request),
            (Owed::RESPONSE, Operation::Response),
            (Owed::SHUTDOWN, Operation::Shutdown),
        ] {
            if self.owed.contains(owed) {
                self.owed.remove(owed);
                let flags = if owed == Owed::SHUTDOWN { self.said } else { 0 };
                return Some((operation, flags, 0));
            }
        }
        if self.takes_input()
            && self.readable
            && let Some(packet) = self.read(room)
        {
            return Some(packet);
        }
        self.owed.contains(Owed::CREDIT_UPDATE).then_some((Operation::CreditUpdate, 0, 0))
    }

    /// Data of the caller, its end, or a word about missing credit.
    fn read(&mut self, room: &Buffers<'_>) -> Option<(Operation, u32, u32)> {
        let credit = self.credit() as usize;
        if credit == 0 {
            let asked = std::mem::replace(&mut self.credit_asked, true);
            return (!asked).then_some((Operation::CreditRequest, 0, 0));
        }
        let stream = self.stream.as_ref()?.as_fd();
        let read = if credit < room.len() {
            let part = room.clone().take_front(credit);
            buffers::read_from(stream, std::iter::once(&part), &mut [])
        } else {
            buffers::read_from(stream, std::iter::once(room), &mut [])
        };
        match read {
            Ok(0) => self.said |= SHUTDOWN_SEND,
            Ok(length) => {
                let length = u32::try_from(length).expect("no more than the credit");
                self.sent = self.sent.wrapping_add(length);
                return Some((Operation::ReadWrite, 0, length));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return None;
            }
            // Not seen on a non-blocking socket; it stays readable and has its turn again.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return None,
            // The caller closed with bytes of the guest's unread.
            Err(_) => {
                self.caller_gone();
                self.said = SHUTDOWN_BOTH;
            }
        }
        self.owed.remove(Owed::SHUTDOWN);
        Some((Operation::Shutdown, self.said, 0))
    }

    /// Every packet of the guest says how much it has room for.
    fn learn_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buffer_size;
        self.guest_forwarded = header.forwarded;
        self.credit_asked &= self.credit() == 0;
    }

    /// Bytes the guest has room for (§5.10.6.3).
    fn credit(&self) -> u32 {
        // The counters run freely. A guest that lies gets at most what it says its buffer is.
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(in_flight)
    }

    /// Whether the caller's data is wanted.
    fn takes_input(&self) -> bool {
        self.phase == Phase::Established
            && self.said & SHUTDOWN_SEND == 0
            && self.heard & SHUTDOWN_RECEIVE == 0
    }

    /// Data from the guest.
    fn take(&mut self, mut data: Buffers<'_>) {
        let room = BUFFER_SIZE as usize - self.buffer.len();
        if self.heard & SHUTDOWN_SEND != 0 || data.len() > room {
            return self.end();
        }
        while self.buffer.is_empty() && !data.is_empty() && self.said & SHUTDOWN_RECEIVE == 0 {
            let Some(stream) = &self.stream else { break };
            match data.send_to(stream.as_fd()) {
                Ok(count) => {
                    data.take_front(count);
                    self.forward(count);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.caller_gone(),
            }
        }
        if self.said & SHUTDOWN_RECEIVE != 0 {
            // Nobody wants it; the guest was told, and may not have heard yet.
            return self.forward(data.len());
        }
        let from = self.buffer.len();
        self.buffer.resize(from + data.len(), 0);
        let (front, back) = self.buffer.as_mut_slices();
        let skipped = front.len().min(from);
        let done = data.copy_to(&mut front[skipped..]);
        data.take_front(done);
        data.copy_to(&mut back[from - skipped..]);
    }

    /// Passes on what is kept, as much as the socket takes.
    pub(super) fn flush(&mut self) {
        while !self.buffer.is_empty() {
            let Some(stream) = &self.stream else { return };
            let piece = self.buffer.as_slices().0;
            match rustix::net::send(stream, piece, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.forward(count);
                }
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return self.caller_gone(),
            }
        }
        // A buffer once needed is not kept for ever.
        self.buffer = VecDeque::new();
        self.end_output_if_drained();
    }

    fn forward(&mut self, count: usize) {
        let count = u32::try_from(count).expect("no more than the credit");
        self.forwarded = self.forwarded.wrapping_add(count);
        if self.phase == Phase::Established && self.forwarded.wrapping_sub(self.told) >= CREDIT_STEP {
            self.owed |= Owed::CREDIT_UPDATE;
        }
    }

    /// When all the guest has sent is passed on and it will send no more, the caller sees end of file.
    fn end_output_if_drained(&mut self) {
        let ended = self.heard & SHUTDOWN_SEND != 0 || matches!(self.phase, Phase::Ending | Phase::Detached);
        // Once: each time makes an event of the socket, after which this is looked at again.
        if ended && self.buffer.is_empty() && !self.output_ended {
            self.output_ended = true;
            self.shut_socket(Shutdown::Write);
        }
    }

    /// The caller has closed its end, or will not read from it any more.
    fn caller_gone(&mut self) {
        self.forward(self.buffer.len());
        self.buffer = VecDeque::new();
        let nothing_to_send = self.heard & SHUTDOWN_RECEIVE != 0;
        self.say(SHUTDOWN_RECEIVE | if nothing_to_send { SHUTDOWN_SEND } else { 0 });
    }

    /// Adds SHUTDOWN flags to what the guest is told: now, or once it has accepted.
    fn say(&mut self, flags: u32) {
        let news = self.said | flags != self.said;
        self.said |= flags;
        if news && self.phase == Phase::Established {
            self.owed |= Owed::SHUTDOWN;
        }
    }

    /// The guest shut down directions.
    fn hear(&mut self, flags: u32) {
        self.heard |= flags;
        if self.heard & SHUTDOWN_RECEIVE != 0 {
            // The caller's writes then fail with EPIPE, as with any socket.
            self.shut_socket(Shutdown::Read);
            if self.said & SHUTDOWN_RECEIVE != 0 {
                self.say(SHUTDOWN_SEND);
            }
        }
        self.end_output_if_drained();
        if self.heard == SHUTDOWN_BOTH {
            self.end();
        }
    }

    fn detach(&mut self) {
        self.phase = Phase::Detached;
        self.owed = Owed::empty();
        self.end_output_if_drained();
    }

    fn shut_socket(&self, how: Shutdown) {
        if let Some(stream) = &self.stream {
            // Fails only if the caller is gone, who then does not need to hear it.
            let _ = stream.shutdown(how);
        }
    }

    /// Closes the socket. After a clean end the caller sees end of file, not a reset, even if it wrote what
    /// the guest did not stay for.
    pub(super) fn close(mut self) {
        self.flush();
        let Some(mut stream) = self.stream.filter(|_| self.heard == SHUTDOWN_BOTH) else { return };
        // The caller cannot write any more, so this ends; bytes left unread would make the close a reset.
        let _ = stream.shutdown(Shutdown::Both);
        let mut rest = [0; 4096];
        while stream.read(&mut rest).is_ok_and(|count| count > 0) {}
    }
}

#[cfg(test)]
impl Connection {
    /// Bytes of the guest kept for the caller.
    pub(super) fn kept(&self) -> usize {
        self.buffer.len()
    }
}
