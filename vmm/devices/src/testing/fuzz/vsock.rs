//! Packets of a guest and doings of the host's side of the same sockets, in any order.

use std::collections::HashMap;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use arbitrary::Arbitrary;
use parking_lot::Mutex;

use super::parse;
use crate::testing::Buffer;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Virtqueue;
use crate::testing::devices::VSOCK;
use crate::virtio::vsock::Vsock;
use crate::virtio::vsock::VsockPorts;

const HEADER: usize = 44;
const RECEIVE_BUFFER: u32 = 4096;
const RECEIVE_BUFFERS: u64 = 32;
/// Ports of the host that somebody listens on.
const PORTS: [u32; 2] = [7, 1024];
/// Operations of one run.
const MOST: usize = 200;
/// The largest packet.
const MOST_DATA: usize = 8192;

#[derive(Debug, Arbitrary)]
enum Operation {
    Packet(Packet),
    Connect(u8),
    HostWrites(u8, u16),
    HostReads(u8),
    HostCloses(u8),
}

#[derive(Debug, Arbitrary)]
struct Packet {
    operation: Kind,
    host_port: Port,
    guest_port: u8,
    /// For another, from another, of another type.
    stray: Option<Stray>,
    data: u16,
    /// Instead of the length of the data.
    length: Option<u32>,
    flags: u32,
    buffer: Credit,
    forwarded: Credit,
    indirect: bool,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Kind {
    Request,
    Response,
    Reset,
    Shutdown,
    ReadWrite,
    CreditUpdate,
    CreditRequest,
    Other(u16),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Port {
    Listening(bool),
    /// Where connections of the host come from.
    Host(u8),
    Any(u32),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Stray {
    Source(u64),
    Destination(u64),
    Type(u16),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Credit {
    None,
    Some(u16),
    Any(u32),
}

impl Packet {
    fn header(&self) -> [u8; HEADER] {
        let (mut source, mut destination, mut kind) = (3u64, 2u64, 1u16);
        match self.stray {
            Some(Stray::Source(id)) => source = id,
            Some(Stray::Destination(id)) => destination = id,
            Some(Stray::Type(number)) => kind = number,
            None => {}
        }
        let host_port = match self.host_port {
            Port::Listening(first) => PORTS[usize::from(first)],
            Port::Host(n) => (1 << 30) + u32::from(n % 8),
            Port::Any(port) => port,
        };
        let operation = match self.operation {
            Kind::Request => 1u16,
            Kind::Response => 2,
            Kind::Reset => 3,
            Kind::Shutdown => 4,
            Kind::ReadWrite => 5,
            Kind::CreditUpdate => 6,
            Kind::CreditRequest => 7,
            Kind::Other(number) => number,
        };
        let credit = |credit| match credit {
            Credit::None => 0,
            Credit::Some(bytes) => u32::from(bytes),
            Credit::Any(bytes) => bytes,
        };
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &source.to_le_bytes());
        put(8, &destination.to_le_bytes());
        put(16, &u32::from(self.guest_port % 8).to_le_bytes());
        put(20, &host_port.to_le_bytes());
        put(24, &self.length.unwrap_or(self.data()).to_le_bytes());
        put(28, &kind.to_le_bytes());
        put(30, &operation.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &credit(self.buffer).to_le_bytes());
        put(40, &credit(self.forwarded).to_le_bytes());
        bytes
    }

    fn data(&self) -> u32 {
        u32::from(self.data) % MOST_DATA as u32
    }
}

/// The guest, its receive buffers always on offer.
struct Guest<'m> {
    machine: &'m Machine,
    receive: Virtqueue<'m>,
    transmit: Virtqueue<'m>,
    addresses: HashMap<u16, u64>,
    outgoing: u64,
}

/// Runs operations. Every packet of the guest's is taken, and the device works after a reset.
pub fn vsock(bytes: &[u8]) {
    let Some(operations) = parse::<Vec<Operation>>(bytes) else { return };
    let machine = Machine::new();
    let ports = VsockPorts::new().unwrap();
    let streams = Arc::new(Mutex::new(Vec::<UnixStream>::new()));
    for port in PORTS {
        let streams = streams.clone();
        let accept = move |stream: UnixStream| {
            stream.set_nonblocking(true).unwrap();
            streams.lock().push(stream);
        };
        ports.listen(port, Box::new(accept)).unwrap();
    }
    let slot = machine.plug(Vsock::new(3, ports.clone()));
    {
        let driver = Driver::negotiate(&machine, slot, u64::MAX);
        let mut queues = driver.queues();
        driver.ready();
        let (receive, transmit) = (queues.remove(0), queues.remove(0));
        let outgoing = machine.allocate((HEADER + MOST_DATA) as u64);
        let mut guest = Guest { machine: &machine, receive, transmit, addresses: HashMap::new(), outgoing };
        for _ in 0..RECEIVE_BUFFERS {
            guest.offer(machine.allocate(RECEIVE_BUFFER.into()));
        }
        guest.receive.notify();
        for operation in operations.iter().take(MOST) {
            match operation {
                Operation::Packet(packet) => guest.send(packet),
                Operation::Connect(port) => {
                    let stream = ports.connect(u32::from(port % 8)).unwrap();
                    stream.set_nonblocking(true).unwrap();
                    streams.lock().push(stream);
                }
                Operation::HostWrites(n, bytes) => with(&streams, *n, |stream| {
                    let _ = stream.write(&vec![7; usize::from(*bytes)]);
                }),
                Operation::HostReads(n) => with(&streams, *n, |stream| {
                    let _ = stream.read(&mut [0; 4096]);
                }),
                Operation::HostCloses(n) => {
                    let mut streams = streams.lock();
                    if let Some(n) = usize::from(*n).checked_rem(streams.len()) {
                        streams.swap_remove(n);
                    }
                }
            }
            guest.take();
        }
        driver.reset();
    }
    (VSOCK.works)(&machine, slot);
    machine.segment.remove(slot);
    // Nobody is left waiting. What the host had asked for and was not begun is at an end only now.
    for stream in streams.lock().drain(..) {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let ended = std::io::copy(&mut &stream, &mut std::io::sink());
        let hangs = ended.is_err_and(|e| {
            matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
        });
        assert!(!hangs, "a stream did not end with its device");
    }
    machine.assert_unharmed();
}

fn with(streams: &Mutex<Vec<UnixStream>>, n: u8, act: impl FnOnce(&mut UnixStream)) {
    let mut streams = streams.lock();
    if let Some(n) = usize::from(n).checked_rem(streams.len()) {
        act(&mut streams[n]);
    }
}

impl Guest<'_> {
    fn offer(&mut self, address: u64) {
        let head = self.receive.offer(&[Buffer::Write(address, RECEIVE_BUFFER)]);
        self.addresses.insert(head, address);
    }

    fn send(&mut self, packet: &Packet) {
        self.machine.store(self.outgoing, &packet.header());
        let whole = [
            Buffer::Read(self.outgoing, 40),
            Buffer::Read(self.outgoing + 40, HEADER as u32 - 40 + packet.data()),
        ];
        if packet.indirect {
            self.transmit.offer_indirect(&whole);
        } else {
            self.transmit.offer(&whole);
        }
        self.transmit.notify();
        self.transmit.wait_used();
    }

    /// Takes what has come and offers its buffers again.
    fn take(&mut self) {
        while let Some(used) = self.receive.take_used() {
            let address = self.addresses.remove(&used.head).unwrap();
            assert!(used.length >= HEADER as u32 && used.length <= RECEIVE_BUFFER, "{used:?}");
            let length = self.machine.load(address + 24, 4);
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
            assert_eq!(used.length, HEADER as u32 + length);
            self.offer(address);
        }
        self.receive.notify();
    }
}
