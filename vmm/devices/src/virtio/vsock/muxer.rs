//! The device's thread: carries packets between the queues and the connections.
//!
//! Order of work, each step bounded by what the guest provides: take packets from the transmit queue while
//! their answers have room, then fill the receive queue with answers first and data, one packet a connection
//! at a time, after. Nothing is dropped: with no room for answers the transmit queue waits.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io::Read;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use virtio_queue::QueueOwnedT;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::connection::BUFFER_SIZE;
use super::connection::Connection;
use super::connection::Key;
use super::packet::HEADER_SIZE;
use super::packet::Header;
use super::packet::Operation;
use super::packet::TYPE_STREAM;
use super::ports::VsockPorts;
use crate::virtio::device::Activation;
use crate::virtio::device::ActiveQueue;
use crate::virtio::queue;
use crate::virtio::queue::ChainError;
use crate::virtio::worker::Handler;
use crate::virtio::worker::Interest;

/// Tokens of the worker.
pub(super) const RECEIVE: u64 = 0;
pub(super) const TRANSMIT: u64 = 1;
pub(super) const PORTS: u64 = 2;
const FIRST_CONNECTION: u64 = 16;

/// Context identifier of the host.
const HOST_CID: u64 = 2;
/// Connections at a time; further ones are refused. Each costs the host a socket pair.
const MOST_CONNECTIONS: usize = 1024;
/// Answers waiting for the receive queue before the transmit queue is left alone.
const MOST_ANSWERS: usize = 256;
/// Largest packet we make or take.
const MOST_DATA: usize = 64 << 10;
/// First of the ports we connect from.
const FIRST_EPHEMERAL: u32 = 1 << 30;

struct Answer {
    key: Key,
    operation: Operation,
    flags: u32,
}

pub(super) struct Muxer {
    guest_cid: u64,
    ports: Arc<VsockPorts>,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    activation: Activation,
    connections: HashMap<u64, Connection>,
    tokens: HashMap<Key, u64>,
    next_token: u64,
    next_port: u32,
    answers: VecDeque<Answer>,
    /// Connections that may have data for the guest, each once, in turn.
    turn: VecDeque<u64>,
    scratch: Vec<u8>,
}

impl Muxer {
    pub(super) fn new(
        guest_cid: u64,
        ports: Arc<VsockPorts>,
        receive: ActiveQueue,
        transmit: ActiveQueue,
        activation: Activation,
    ) -> Self {
        Self {
            guest_cid,
            ports,
            receive,
            transmit,
            activation,
            connections: HashMap::new(),
            tokens: HashMap::new(),
            next_token: FIRST_CONNECTION,
            next_port: FIRST_EPHEMERAL,
            answers: VecDeque::new(),
            turn: VecDeque::new(),
            scratch: vec![0; MOST_DATA],
        }
    }

    /// Does all that can be done now.
    fn work(&mut self, interest: &Interest) -> ControlFlow<()> {
        let memory = self.activation.memory.memory();
        let mut done = Ok(());
        loop {
            let room_before = self.answers.len() < MOST_ANSWERS;
            done = done.and_then(|()| self.take_packets(&memory, interest));
            done = done.and_then(|()| self.fill(&memory, interest));
            // Filling may have made room for the answers to packets that wait.
            let room_now = self.answers.len() < MOST_ANSWERS;
            if done.is_err() || room_before || !room_now {
                break;
            }
        }
        queue::stop_if_malformed("virtio-vsock", done, &self.activation.interrupt)
    }

    /// The transmit queue: packets from the guest.
    fn take_packets(&mut self, memory: &GuestMemoryMmap, interest: &Interest) -> Result<(), ChainError> {
        loop {
            self.transmit.queue.disable_notification(memory)?;
            while self.answers.len() < MOST_ANSWERS {
                let Some(chain) = queue::next(&mut self.transmit, memory)? else { break };
                let head = chain.head_index();
                let mut reader = chain.reader(memory)?;
                let mut bytes = [0; HEADER_SIZE];
                reader.read_exact(&mut bytes).map_err(ChainError::Memory)?;
                let header = Header::decode(&bytes);
                let length = usize::try_from(header.length).unwrap_or(usize::MAX);
                if length > reader.available_bytes() || length > MOST_DATA {
                    return Err(ChainError::Layout("more data announced than there is"));
                }
                let mut data = std::mem::take(&mut self.scratch);
                let read = reader.read_exact(&mut data[..length]);
                if read.is_ok() {
                    self.packet(&header, &data[..length], interest);
                }
                self.scratch = data;
                read.map_err(ChainError::Memory)?;
                self.transmit.queue.add_used(memory, head, 0)?;
                if self.transmit.queue.needs_notification(memory)? {
                    self.activation.interrupt.used_buffers(self.transmit.index);
                }
            }
            let full = self.answers.len() >= MOST_ANSWERS;
            if full || !self.transmit.queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }

    /// One packet from the guest.
    fn packet(&mut self, header: &Header, data: &[u8], interest: &Interest) {
        let key = (header.destination_port, header.source_port);
        let known = self.tokens.get(&key).copied();
        let addressed = header.destination_cid == HOST_CID && header.source_cid == self.guest_cid;
        // Not for us, or from somebody the guest is not: nobody to answer.
        if !addressed {
            return;
        }
        let (Some(operation), TYPE_STREAM) = (header.operation, header.kind) else {
            return self.refuse(key, known, interest);
        };
        let Some(token) = known else {
            match operation {
                Operation::Request => self.accept(key, header, interest),
                // Never answer a reset with a reset.
                Operation::Reset => {}
                _ => self.refuse(key, None, interest),
            }
            return;
        };
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.draining {
            // The guest was told that it is over.
            if operation != Operation::Reset {
                self.answer(key, Operation::Reset, 0);
            }
            return;
        }
        connection.learn_credit(header);
        let legal = match operation {
            Operation::Request => false,
            Operation::Response => !std::mem::replace(&mut connection.established, true),
            Operation::Reset => {
                self.drain(token, interest);
                return;
            }
            Operation::Shutdown => {
                let over = connection.guest_shut_down(header.flags);
                if over {
                    // Both ends agree: confirm, and let the caller have what is left.
                    self.answer(key, Operation::Reset, 0);
                    self.drain(token, interest);
                    return;
                }
                connection.flush().is_ok()
            }
            Operation::ReadWrite => connection.receive(data).is_ok(),
            Operation::CreditUpdate => true,
            Operation::CreditRequest => {
                self.answer(key, Operation::CreditUpdate, 0);
                true
            }
        };
        if legal {
            self.update_credit(token);
            self.settle(token, interest);
        } else {
            self.refuse(key, Some(token), interest);
        }
    }

    /// The guest asks for a connection.
    fn accept(&mut self, key: Key, header: &Header, interest: &Interest) {
        let listener = self.ports.listener(key.0);
        let pair = UnixStream::pair().and_then(|(ours, callers)| {
            ours.set_nonblocking(true)?;
            Ok((ours, callers))
        });
        let full = self.connections.len() >= MOST_CONNECTIONS;
        let (Some(listener), Ok((ours, callers)), false) = (listener, pair, full) else {
            return self.refuse(key, None, interest);
        };
        let mut connection = Connection::new(key, ours, true);
        connection.learn_credit(header);
        let token = self.add(connection);
        self.answer(key, Operation::Response, 0);
        self.settle(token, interest);
        listener(callers);
    }

    /// Connections the host asked for.
    fn connect(&mut self, interest: &Interest) {
        for (port, stream) in self.ports.take_asked() {
            if self.connections.len() >= MOST_CONNECTIONS {
                tracing::warn!("vsock: {MOST_CONNECTIONS} connections are open, one more is refused");
                continue;
            }
            let key = loop {
                let key = (self.next_port, port);
                self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
                if !self.tokens.contains_key(&key) {
                    break key;
                }
            };
            let token = self.add(Connection::new(key, stream, false));
            self.answer(key, Operation::Request, 0);
            self.settle(token, interest);
        }
    }

    fn add(&mut self, connection: Connection) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.tokens.insert(connection.key, token);
        self.connections.insert(token, connection);
        token
    }

    fn answer(&mut self, key: Key, operation: Operation, flags: u32) {
        self.answers.push_back(Answer { key, operation, flags });
    }

    /// Tells the guest that there is no such connection (any more), and ends ours.
    fn refuse(&mut self, key: Key, token: Option<u64>, interest: &Interest) {
        self.answer(key, Operation::Reset, 0);
        if let Some(token) = token {
            self.drain(token, interest);
        }
    }

    /// The guest is out; the caller still gets what was buffered.
    fn drain(&mut self, token: u64, interest: &Interest) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.draining = true;
            self.settle(token, interest);
        }
    }

    fn update_credit(&mut self, token: u64) {
        if let Some(connection) = self.connections.get(&token)
            && !connection.draining
            && connection.should_update_credit()
        {
            let key = connection.key;
            self.answer(key, Operation::CreditUpdate, 0);
        }
    }

    /// Brings what the event loop waits for in line with what the connection needs, or forgets it.
    fn settle(&mut self, token: u64, interest: &Interest) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let over = connection.flush().is_err() || (connection.draining && !connection.has_output());
        if over {
            if let Some(connection) = self.connections.remove(&token) {
                if connection.registered.is_some() {
                    let _ = interest.remove(connection.fd());
                }
                self.tokens.remove(&connection.key);
                if !connection.draining {
                    self.answer(connection.key, Operation::Reset, 0);
                }
            }
            return;
        }
        if connection.readable && connection.takes_input() && !self.turn.contains(&token) {
            self.turn.push_back(token);
        }
        // Data that is known to be there is not waited for: without room in the guest that would spin.
        let wanted = (connection.takes_input() && !connection.readable, connection.has_output());
        let wanted = (wanted != (false, false)).then_some(wanted);
        if wanted == connection.registered {
            return;
        }
        let events = |(read, write): (bool, bool)| {
            let read = if read { EventSet::IN } else { EventSet::empty() };
            read | if write { EventSet::OUT } else { EventSet::empty() }
        };
        // Unregistered rather than waiting for nothing: a hang-up would be reported all the same.
        let done = match (connection.registered, wanted) {
            (None, Some(wanted)) => interest.add(connection.fd(), token, events(wanted)),
            (Some(_), Some(wanted)) => interest.change(connection.fd(), token, events(wanted)),
            (_, None) => interest.remove(connection.fd()),
        };
        if let Err(e) = done {
            tracing::error!("vsock: cannot wait for a stream: {e}");
        }
        connection.registered = wanted;
    }

    /// The receive queue: answers first, then data.
    fn fill(&mut self, memory: &GuestMemoryMmap, interest: &Interest) -> Result<(), ChainError> {
        loop {
            self.receive.queue.disable_notification(memory)?;
            while !self.answers.is_empty() || !self.turn.is_empty() {
                let Some(chain) = queue::next(&mut self.receive, memory)? else { break };
                let head = chain.head_index();
                let mut writer = chain.writer(memory)?;
                let room = writer.available_bytes();
                if room < HEADER_SIZE {
                    return Err(ChainError::Layout("a receive buffer is shorter than a header"));
                }
                let Some((header, length)) = self.next_packet(room - HEADER_SIZE, interest) else {
                    // Nothing after all: keep the buffer for later.
                    self.receive.queue.go_to_previous_position();
                    continue;
                };
                writer.write_all(&header.encode()).map_err(ChainError::Memory)?;
                writer.write_all(&self.scratch[..length]).map_err(ChainError::Memory)?;
                let written = u32::try_from(HEADER_SIZE + length).expect("at most 64 KiB and a header");
                self.receive.queue.add_used(memory, head, written)?;
                if self.receive.queue.needs_notification(memory)? {
                    self.activation.interrupt.used_buffers(self.receive.index);
                }
            }
            let idle = self.answers.is_empty() && self.turn.is_empty();
            if idle || !self.receive.queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }

    /// The next packet for the guest; its data is in `scratch`.
    fn next_packet(&mut self, room: usize, interest: &Interest) -> Option<(Header, usize)> {
        if let Some(answer) = self.answers.pop_front() {
            return Some((self.header(answer.key, answer.operation, answer.flags, 0), 0));
        }
        let token = self.turn.pop_front()?;
        let connection = self.connections.get_mut(&token)?;
        let credit = usize::try_from(connection.credit()).unwrap_or(usize::MAX);
        let most = room.min(MOST_DATA).min(credit);
        if !connection.takes_input() || most == 0 {
            // A credit update brings it back (`settle`), and so does nothing else.
            return None;
        }
        let key = connection.key;
        match connection.read(&mut self.scratch[..most]) {
            Ok(Some(0)) => {
                let flags = connection.end_input();
                self.settle(token, interest);
                Some((self.header(key, Operation::Shutdown, flags, 0), 0))
            }
            Ok(Some(length)) => {
                self.settle(token, interest);
                let announced = u32::try_from(length).expect("at most 64 KiB");
                Some((self.header(key, Operation::ReadWrite, 0, announced), length))
            }
            Ok(None) => {
                connection.readable = false;
                self.settle(token, interest);
                None
            }
            Err(_) => {
                self.refuse(key, Some(token), interest);
                None
            }
        }
    }

    fn header(&mut self, key: Key, operation: Operation, flags: u32, length: u32) -> Header {
        let connection = self.tokens.get(&key).and_then(|token| self.connections.get_mut(token));
        let (buffer_size, forwarded) = connection.map_or((BUFFER_SIZE, 0), Connection::tell_credit);
        Header {
            source_cid: HOST_CID,
            destination_cid: self.guest_cid,
            source_port: key.0,
            destination_port: key.1,
            length,
            kind: TYPE_STREAM,
            operation: Some(operation),
            flags,
            buffer_size,
            forwarded,
        }
    }
}

impl Handler for Muxer {
    fn start(&mut self, interest: &Interest) -> ControlFlow<()> {
        self.connect(interest);
        self.work(interest)
    }

    fn ready(&mut self, token: u64, events: EventSet, interest: &Interest) -> ControlFlow<()> {
        match token {
            RECEIVE => queue::clear(&self.receive),
            TRANSMIT => queue::clear(&self.transmit),
            PORTS => self.connect(interest),
            _ => {
                if let Some(connection) = self.connections.get_mut(&token) {
                    // A hang-up or an error is found by reading.
                    connection.readable |= events != EventSet::OUT;
                    self.update_credit(token);
                    self.settle(token, interest);
                    self.update_credit(token);
                }
            }
        }
        self.work(interest)
    }
}
