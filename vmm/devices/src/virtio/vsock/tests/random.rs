//! Random guests and callers, legal and not, against the connections without queues. What must hold of all:
//! every stream carries the bytes that were put in, in order; nothing grows past its bound; when everybody is
//! gone, nothing is left.

use std::collections::HashMap;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::bytes;
use super::check;
use super::guest::CID;
use super::guest::packet;
use crate::io_thread::tests::alone::Alone;
use crate::virtio::buffers::Buffers;
use crate::virtio::vsock::BUFFER_SIZE;
use crate::virtio::vsock::MOST_REFUSALS;
use crate::virtio::vsock::VsockPorts;
use crate::virtio::vsock::connection::Key;
use crate::virtio::vsock::connections::Connections;
use crate::virtio::vsock::packet::HOST_CID;
use crate::virtio::vsock::packet::Header;
use crate::virtio::vsock::packet::Operation;
use crate::virtio::vsock::packet::TYPE_STREAM;

const OPERATIONS: [Option<Operation>; 8] = [
    Some(Operation::Request),
    Some(Operation::Response),
    Some(Operation::Reset),
    Some(Operation::Shutdown),
    Some(Operation::ReadWrite),
    Some(Operation::CreditUpdate),
    Some(Operation::CreditRequest),
    None,
];

#[derive(Debug, Clone)]
enum Step {
    /// On one of the names used so far, or a new one. `wrong`: which field, if any, is made nonsense.
    Packet {
        name: usize,
        operation: usize,
        length: usize,
        flags: u32,
        buffer: u32,
        wrong: u8,
    },
    /// As the guest should: takes all there is for it, answers requests.
    Behave {
        room: usize,
    },
    Connect,
    Write {
        caller: usize,
        length: usize,
    },
    Read {
        caller: usize,
        length: usize,
    },
    Shut {
        caller: usize,
        how: u8,
    },
    Close {
        caller: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let packet = (0usize..6, 0usize..8, 0usize..100_000, 0u32..5, 0u32..200_000, 0u8..30);
    prop_oneof![
        6 => packet.prop_map(|(name, operation, length, flags, buffer, wrong)| {
            Step::Packet { name, operation, length, flags, buffer, wrong }
        }),
        4 => (0usize..6, 1usize..100_000, 1u32..200_000).prop_map(|(name, length, buffer)| {
            Step::Packet { name, operation: 4, length, flags: 0, buffer, wrong: 9 }
        }),
        6 => (1usize..5000).prop_map(|room| Step::Behave { room }),
        1 => Just(Step::Connect),
        4 => (0usize..6, 1usize..100_000).prop_map(|(caller, length)| Step::Write { caller, length }),
        4 => (0usize..6, 1usize..300_000).prop_map(|(caller, length)| Step::Read { caller, length }),
        1 => (0usize..6, 0u8..3).prop_map(|(caller, how)| Step::Shut { caller, how }),
        1 => (0usize..6).prop_map(|caller| Step::Close { caller }),
    ]
}

/// A caller, and how far its streams are.
struct Caller {
    stream: UnixStream,
    read: usize,
    written: usize,
}

struct World {
    connections: Connections,
    ports: Arc<VsockPorts>,
    alone: Alone,
    accepted: Arc<Mutex<Vec<UnixStream>>>,
    callers: Vec<Caller>,
    /// The names used: on listening ports, on one that is not, and those the host has chosen.
    names: Vec<Key>,
    /// By name: bytes the guest has sent and received on the connection that has it now.
    sent: HashMap<Key, usize>,
    received: HashMap<Key, usize>,
}

impl World {
    fn new() -> Self {
        let ports = VsockPorts::new().unwrap();
        let accepted: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        for port in [1, 2] {
            let accepted = accepted.clone();
            ports.listen(port, Box::new(move |stream| accepted.lock().push(stream))).unwrap();
        }
        Self {
            connections: Connections::new(CID, ports.clone()),
            ports,
            alone: Alone::new(),
            accepted,
            callers: Vec::new(),
            names: vec![(1, 1), (1, 2), (2, 1), (3, 1)],
            sent: HashMap::new(),
            received: HashMap::new(),
        }
    }

    fn add_caller(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).unwrap();
        self.callers.push(Caller { stream, read: 0, written: 0 });
    }

    fn caller(&mut self, index: usize) -> Option<&mut Caller> {
        let count = self.callers.len();
        self.callers.get_mut(index % count.max(1))
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Packet { name, operation, length, flags, buffer, wrong } => {
                let key = self.names[name % self.names.len()];
                let mut header = packet(key, Operation::Reset, buffer);
                header.operation = OPERATIONS[operation];
                header.flags = flags;
                header.forwarded = self.received.get(&key).copied().unwrap_or(0) as u32;
                let length = if operation == 4 { length } else { 0 };
                header.length = length as u32;
                match wrong {
                    0 => header.kind = 2,
                    1 => header.length = u32::MAX,
                    2 => header.forwarded ^= 0x8000_0001,
                    3 => header.source_cid = 99,
                    4 => header.destination_cid = 99,
                    _ => {}
                }
                self.send(&header, length);
            }
            Step::Behave { room } => while self.take(room, true) {},
            Step::Connect => {
                let stream = self.ports.connect(7).unwrap();
                self.add_caller(stream);
                let Self { connections, alone, .. } = self;
                alone.with(|interest| connections.connect(interest));
            }
            Step::Write { caller, length } => {
                if let Some(caller) = self.caller(caller)
                    && let Ok(count) = caller.stream.write(&bytes(caller.written, length))
                {
                    caller.written += count;
                }
            }
            Step::Read { caller, length } => {
                let mut data = vec![0; length];
                if let Some(caller) = self.caller(caller)
                    && let Ok(count) = caller.stream.read(&mut data)
                {
                    check(&data[..count], caller.read);
                    caller.read += count;
                }
            }
            Step::Shut { caller, how } => {
                let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both][usize::from(how)];
                if let Some(caller) = self.caller(caller) {
                    let _ = caller.stream.shutdown(how);
                }
            }
            Step::Close { caller } => {
                if !self.callers.is_empty() {
                    self.callers.swap_remove(caller % self.callers.len());
                }
            }
        }
        self.settle();
    }

    /// A packet whose data goes on where the guest's stream is.
    fn send(&mut self, header: &Header, length: usize) {
        // As the worker does.
        while !self.connections.can_receive() {
            assert!(self.take(1, false));
        }
        let key = (header.destination_port, header.source_port);
        let from = self.sent.get(&key).copied().unwrap_or(0);
        let mut data = bytes(from, length);
        let Self { connections, alone, .. } = self;
        alone.with(|interest| connections.receive(header, Buffers::from_bytes(&mut data), interest));
        if header.kind == TYPE_STREAM && header.source_cid == CID && header.destination_cid == HOST_CID {
            *self.sent.entry(key).or_default() += length;
        }
        let accepted = std::mem::take(&mut *self.accepted.lock());
        for stream in accepted {
            self.sent.insert(key, 0);
            self.add_caller(stream);
        }
    }

    /// Takes a packet for the guest; false if there is none.
    fn take(&mut self, room: usize, answer: bool) -> bool {
        let mut data = vec![0; room];
        let Self { connections, alone, .. } = self;
        let next = alone.with(|interest| connections.next(&Buffers::from_bytes(&mut data), interest));
        let Some(header) = next else { return false };
        let key = (header.source_port, header.destination_port);
        match header.operation.unwrap() {
            Operation::Request => {
                self.names.push(key);
                self.received.insert(key, 0);
                if answer {
                    self.sent.insert(key, 0);
                    self.send(&packet(key, Operation::Response, 50_000), 0);
                }
            }
            Operation::Response => drop(self.received.insert(key, 0)),
            Operation::ReadWrite => {
                let received = self.received.entry(key).or_default();
                check(&data[..header.length as usize], *received);
                *received += header.length as usize;
            }
            _ => assert_eq!(header.length, 0),
        }
        true
    }

    /// The worker's part: what the sockets say. False if they say nothing.
    fn settle(&mut self) -> bool {
        let Self { connections, alone, .. } = self;
        let events = alone.poll();
        for &(token, events) in &events {
            alone.with(|interest| connections.ready(token, events, interest));
        }
        let count = self.connections.count();
        assert!(self.connections.waiting() <= count + MOST_REFUSALS);
        assert!(self.connections.kept() <= count * BUFFER_SIZE as usize);
        !events.is_empty()
    }

    /// Everybody goes.
    fn end(mut self) {
        self.callers.clear();
        while self.settle() {}
        while self.take(100, false) {}
        for key in self.names.clone() {
            self.send(&packet(key, Operation::Reset, 0), 0);
        }
        while self.take(100, false) {}
        assert_eq!((self.connections.count(), self.connections.waiting()), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn streams_hold_and_nothing_is_left(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.end();
    }
}
