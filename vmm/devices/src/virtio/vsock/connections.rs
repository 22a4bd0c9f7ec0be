//! All connections: which one a packet from the guest is for, and whose turn it is to send one.
//!
//! Knows packets and sockets, but no queue. Everything there is to say to the guest hangs on a connection,
//! except refusals, which concern none: of those there are at most [`MOST_REFUSALS`], and a caller that sees
//! [`Connections::can_receive`] false takes no more packets until some are sent.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use event_manager::EventSet;

use super::BUFFER_SIZE;
use super::Interest;
use super::MOST_CONNECTIONS;
use super::MOST_REFUSALS;
use super::connection::Connection;
use super::connection::Key;
use super::os::UnixStream;
use super::packet::HOST_CID;
use super::packet::Header;
use super::packet::Operation;
use super::packet::TYPE_STREAM;
use super::ports::VsockPorts;
use crate::log_limit::LogLimit;
use crate::virtio::buffers::Buffers;

/// First of the tokens given to connections.
pub(super) const FIRST_TOKEN: u32 = 16;
/// One after the last.
const END_OF_TOKENS: u32 = u32::MAX - 1;
/// First of the host's ports that connections are opened from.
const FIRST_EPHEMERAL: u32 = 1 << 30;

/// Names a connection for as long as it is there; the next one gets the next number that is free.
type Token = u32;

/// A RST for a packet of no connection.
struct Refusal {
    key: Key,
    /// The packet's, whatever it was.
    kind: u16,
}

pub(super) struct Connections {
    guest_cid: u64,
    ports: Arc<VsockPorts>,
    connections: HashMap<Token, Connection>,
    /// Those the guest has a part in.
    tokens: HashMap<Key, Token>,
    /// Those with something to send, each once, in turn.
    turn: VecDeque<Token>,
    refusals: VecDeque<Refusal>,
    next_token: Token,
    next_port: u32,
}

impl Connections {
    pub(super) fn new(guest_cid: u64, ports: Arc<VsockPorts>) -> Self {
        Self {
            guest_cid,
            ports,
            connections: HashMap::new(),
            tokens: HashMap::new(),
            turn: VecDeque::new(),
            refusals: VecDeque::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_EPHEMERAL,
        }
    }

    /// Begins the connections the host has asked for.
    pub(super) fn connect(&mut self, interest: &mut Interest<'_>) {
        for (port, stream) in self.ports.take_asked() {
            if self.connections.len() < MOST_CONNECTIONS {
                let key = (self.free_port(port), port);
                self.add(Connection::requested(key, stream), interest);
            }
        }
    }

    /// A port of the host that nobody listens on and that has no connection to `guest_port`.
    fn free_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).filter(|&p| p != u32::MAX).unwrap_or(FIRST_EPHEMERAL);
            if !self.tokens.contains_key(&(port, guest_port)) && self.ports.listener(port).is_none() {
                return port;
            }
        }
    }

    /// There is room for what a packet may have to be answered with.
    pub(super) fn can_receive(&self) -> bool {
        self.refusals.len() < MOST_REFUSALS
    }

    /// A packet from the guest with what follows its header. Call only if [`Connections::can_receive`].
    pub(super) fn receive(&mut self, header: &Header, mut data: Buffers<'_>, interest: &mut Interest<'_>) {
        // Not for the host, or from somebody the guest is not: there is nobody to answer.
        if header.destination_cid != HOST_CID || header.source_cid != self.guest_cid {
            return;
        }
        let key = (header.destination_port, header.source_port);
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let well_formed = header.kind == TYPE_STREAM && length <= data.len();
        let Some(&token) = self.tokens.get(&key) else {
            match header.operation {
                Some(Operation::Request) if well_formed => self.accept(key, header, interest),
                // Never answer a reset with a reset.
                Some(Operation::Reset) => {}
                _ => self.refuse(key, header.kind),
            }
            return;
        };
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if well_formed {
            connection.receive(header, data.take_front(length));
        } else if header.kind == TYPE_STREAM {
            connection.end();
        } else {
            self.refuse(key, header.kind);
        }
        self.settle(token, interest);
    }

    fn refuse(&mut self, key: Key, kind: u16) {
        self.refusals.push_back(Refusal { key, kind });
    }

    /// The guest asks for a connection.
    fn accept(&mut self, key: Key, header: &Header, interest: &mut Interest<'_>) {
        let room = self.connections.len() < MOST_CONNECTIONS;
        let Some(accept) = self.ports.listener(key.0).filter(|_| room) else {
            return self.refuse(key, header.kind);
        };
        let pair = UnixStream::pair().and_then(|pair| pair.0.set_nonblocking(true).map(|()| pair));
        match pair {
            Ok((ours, callers)) => {
                if self.add(Connection::accepted(key, ours, header), interest) {
                    accept(callers);
                }
            }
            Err(e) => {
                report("no socket for a connection", &e);
                self.refuse(key, header.kind);
            }
        }
    }

    /// In the place of one that is gone it cannot be taken for that: what was ready of a descriptor is forgotten when
    /// it is removed.
    fn free_token(&mut self) -> Token {
        loop {
            let token = self.next_token;
            self.next_token = if token + 1 == END_OF_TOKENS { FIRST_TOKEN } else { token + 1 };
            if !self.connections.contains_key(&token) {
                return token;
            }
        }
    }

    /// Waits for every socket anew, after a pause.
    pub(super) fn watch(&mut self, interest: &mut Interest<'_>) {
        let tokens: Vec<Token> = self.connections.keys().copied().collect();
        for token in tokens {
            if let Some(connection) = self.connections.get_mut(&token).filter(|c| c.fd().is_some()) {
                watch(connection, token, interest);
                self.settle(token, interest);
            }
        }
    }

    fn add(&mut self, mut connection: Connection, interest: &mut Interest<'_>) -> bool {
        let token = self.free_token();
        let watched = watch(&mut connection, token, interest);
        self.tokens.insert(connection.key, token);
        self.connections.insert(token, connection);
        self.settle(token, interest);
        watched
    }

    /// Something happened to the socket of the connection `token`.
    pub(super) fn ready(&mut self, token: Token, events: EventSet, interest: &mut Interest<'_>) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.ready(events);
            self.settle(token, interest);
        }
    }

    /// There is, or may be, a packet to send.
    pub(super) fn has_output(&self) -> bool {
        !self.refusals.is_empty() || !self.turn.is_empty()
    }

    /// The next packet for the guest, its data in `room`, which is not empty.
    pub(super) fn next(&mut self, room: &Buffers<'_>, interest: &mut Interest<'_>) -> Option<Header> {
        if let Some(Refusal { key, kind }) = self.refusals.pop_front() {
            return Some(Header { kind, ..self.header(key, Operation::Reset) });
        }
        while let Some(token) = self.turn.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.queued = false;
            let packet = connection.next(room);
            let (key, credit) = (connection.key, connection.buffer_and_forwarded());
            self.settle(token, interest);
            if let Some(packet) = packet {
                return Some(Header {
                    flags: packet.flags,
                    length: packet.length,
                    buffer_size: credit.0,
                    forwarded: credit.1,
                    ..self.header(key, packet.operation)
                });
            }
        }
        None
    }

    fn header(&self, (host_port, guest_port): Key, operation: Operation) -> Header {
        Header {
            source_cid: HOST_CID,
            destination_cid: self.guest_cid,
            source_port: host_port,
            destination_port: guest_port,
            length: 0,
            kind: TYPE_STREAM,
            operation: Some(operation),
            flags: 0,
            buffer_size: BUFFER_SIZE,
            forwarded: 0,
        }
    }

    /// Draws the consequences of whatever happened to a connection.
    fn settle(&mut self, token: Token, interest: &mut Interest<'_>) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if let Some(fd) = connection.unused_fd() {
            let _ = interest.remove(fd);
            connection.forget_socket();
        }
        if connection.is_detached() && self.tokens.get(&connection.key) == Some(&token) {
            self.tokens.remove(&connection.key);
        }
        if connection.is_over() {
            if connection.queued {
                self.turn.retain(|&t| t != token);
            }
            if let Some(connection) = self.connections.remove(&token) {
                if let Some(fd) = connection.fd() {
                    // One that could not be added is not there.
                    let _ = interest.remove(fd);
                }
                connection.close();
            }
        } else if connection.has_output() && !connection.queued {
            connection.queued = true;
            self.turn.push_back(token);
        }
    }

    /// Ends all connections without a word to the guest; what is kept and fits goes to the callers. Nobody waits for
    /// their sockets any more.
    pub(super) fn close(&mut self) {
        self.tokens.clear();
        self.turn.clear();
        self.refusals.clear();
        self.connections.drain().for_each(|(_, connection)| connection.close());
    }
}

/// Waits for a connection's socket; false if that cannot be, and then it ends.
fn watch(connection: &mut Connection, token: Token, interest: &mut Interest<'_>) -> bool {
    let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    let watched = connection.fd().is_some_and(|fd| {
        let added = interest.add(fd, token, events);
        added.inspect_err(|e| report("cannot wait for a stream", e)).is_ok()
    });
    if !watched {
        connection.end();
    }
    watched
}

/// What the host could not do. The guest decides how often it is tried.
fn report(what: &str, error: &io::Error) {
    static REPORTS: LogLimit = LogLimit::new();
    if REPORTS.allows() {
        tracing::error!("vsock: {what}: {error}");
    }
}

#[cfg(test)]
impl Connections {
    /// How many there are, those included that only drain.
    pub(super) fn count(&self) -> usize {
        self.connections.len()
    }

    /// Bytes of the guest kept for callers.
    pub(super) fn kept(&self) -> usize {
        self.connections.values().map(Connection::kept).sum()
    }

    /// Entries in all queues of things to send.
    pub(super) fn waiting(&self) -> usize {
        self.turn.len() + self.refusals.len()
    }
}
