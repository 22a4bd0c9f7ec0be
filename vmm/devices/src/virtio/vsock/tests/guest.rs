//! The guest: a driver that sends and receives packets, and as much of a socket as the tests need.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::check;
use crate::testing::Buffer;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Virtqueue;
use crate::virtio::vsock::Vsock;
use crate::virtio::vsock::VsockPorts;
use crate::virtio::vsock::connection::Key;
use crate::virtio::vsock::packet::HEADER_SIZE;
use crate::virtio::vsock::packet::HOST_CID;
use crate::virtio::vsock::packet::Header;
use crate::virtio::vsock::packet::Operation;
use crate::virtio::vsock::packet::TYPE_STREAM;

pub(super) const CID: u64 = 3;
/// Bytes of a receive buffer, as Linux makes them.
pub(super) const RECEIVE_BUFFER: u32 = 4096;
/// The largest packet Linux makes.
pub(super) const MOST_DATA: usize = 64 << 10;
/// Longest wait for the other side. No test waits this long on purpose.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A machine with a vsock device in it.
pub(super) struct Host {
    pub(super) machine: Machine,
    pub(super) ports: Arc<VsockPorts>,
    slot: u8,
}

impl Host {
    pub(super) fn new() -> Self {
        let (machine, ports) = (Machine::new(), VsockPorts::new().unwrap());
        let slot = machine.plug(Vsock::new(CID, ports.clone()));
        Self { machine, ports, slot }
    }

    /// Streams of connections to `port`, as they are accepted.
    pub(super) fn listen(&self, port: u32) -> Receiver<UnixStream> {
        let (sender, receiver) = channel();
        let accept = move |stream: UnixStream| {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            drop(sender.send(stream));
        };
        self.ports.listen(port, Box::new(accept)).unwrap();
        receiver
    }
}

/// The guest's driver, ready, with `buffers` receive buffers on offer.
pub(super) struct Guest<'m> {
    pub(super) machine: &'m Machine,
    pub(super) driver: Driver<'m>,
    pub(super) receive: Virtqueue<'m>,
    pub(super) transmit: Virtqueue<'m>,
    /// By head.
    addresses: HashMap<u16, u64>,
    outgoing: u64,
}

impl<'m> Guest<'m> {
    pub(super) fn new(host: &'m Host, buffers: usize) -> Self {
        let machine = &host.machine;
        let driver = Driver::negotiate(machine, host.slot, 1);
        assert_eq!(driver.features & 1, 1, "VIRTIO_VSOCK_F_STREAM");
        let (receive, transmit) = (driver.queue(0, None), driver.queue(1, None));
        driver.queue(2, None);
        driver.ready();
        let outgoing = machine.allocate((HEADER_SIZE + MOST_DATA) as u64 + 16);
        let mut guest = Self { machine, driver, receive, transmit, addresses: HashMap::new(), outgoing };
        guest.offer(buffers);
        guest
    }

    /// Puts new receive buffers into the ring.
    pub(super) fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let address = self.machine.allocate(u64::from(RECEIVE_BUFFER));
            self.offer_at(address);
        }
        self.receive.notify();
    }

    fn offer_at(&mut self, address: u64) {
        // A header and data apart, at an odd place.
        let rest = RECEIVE_BUFFER - 100;
        let head = self.receive.offer(&[Buffer::Write(address, 100), Buffer::Write(address + 100, rest)]);
        self.addresses.insert(head, address);
    }

    /// Sends a packet and waits until the device has taken it.
    pub(super) fn send(&mut self, header: &Header, data: &[u8]) {
        self.machine.store(self.outgoing, &header.encode());
        self.machine.store(self.outgoing + HEADER_SIZE as u64, data);
        let length = u32::try_from(HEADER_SIZE + data.len()).unwrap();
        assert_eq!(self.transmit.request(&[Buffer::Read(self.outgoing, length)]), 0);
    }

    /// The next packet; its buffer is offered again.
    pub(super) fn next(&mut self) -> (Header, Vec<u8>) {
        let used = self.receive.wait_used();
        self.packet(used)
    }

    /// The next packet if it is there.
    pub(super) fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        let used = self.receive.take_used()?;
        Some(self.packet(used))
    }

    fn packet(&mut self, used: crate::testing::Used) -> (Header, Vec<u8>) {
        let address = self.addresses.remove(&used.head).unwrap();
        let mut bytes = self.machine.load(address, used.length as usize);
        let data = bytes.split_off(HEADER_SIZE);
        let header = Header::decode(bytes.as_slice().try_into().unwrap());
        assert_eq!((header.source_cid, header.destination_cid), (HOST_CID, CID));
        assert_eq!(header.length as usize, data.len());
        self.offer_at(address);
        self.receive.notify();
        (header, data)
    }

    /// The next packet, which is an `operation` on `key`.
    pub(super) fn expect(&mut self, key: Key, operation: Operation) -> Header {
        let (header, data) = self.next();
        let got = ((header.source_port, header.destination_port), header.operation);
        assert_eq!(got, (key, Some(operation)), "{header:?} {data:?}");
        header
    }

    pub(super) fn reset(self) {
        self.driver.reset();
    }
}

/// A packet from the guest on the connection `key`, which promises `buffer` bytes.
pub(super) fn packet(key: Key, operation: Operation, buffer: u32) -> Header {
    Header {
        source_cid: CID,
        destination_cid: HOST_CID,
        source_port: key.1,
        destination_port: key.0,
        length: 0,
        kind: TYPE_STREAM,
        operation: Some(operation),
        flags: 0,
        buffer_size: buffer,
        forwarded: 0,
    }
}

/// The guest's end of a connection.
pub(super) struct Socket {
    pub(super) key: Key,
    /// Bytes of its receive buffer.
    buffer: u32,
    /// Received and passed on.
    pub(super) received: usize,
    pub(super) sent: usize,
    /// What the host says: its buffer and what it has passed on.
    credit: (u32, u32),
    /// SHUTDOWN flags of the host.
    pub(super) shut: u32,
    pub(super) reset: bool,
}

impl Socket {
    /// Connects to a listening port of the host.
    pub(super) fn connect(guest: &mut Guest<'_>, key: Key, buffer: u32) -> Self {
        guest.send(&packet(key, Operation::Request, buffer), &[]);
        let answer = guest.expect(key, Operation::Response);
        Self::new(key, buffer, &answer)
    }

    /// Accepts the next connection of the host.
    pub(super) fn accept(guest: &mut Guest<'_>, buffer: u32) -> Self {
        let (request, _) = guest.next();
        assert_eq!(request.operation, Some(Operation::Request), "{request:?}");
        let socket = Self::new((request.source_port, request.destination_port), buffer, &request);
        guest.send(&packet(socket.key, Operation::Response, buffer), &[]);
        socket
    }

    fn new(key: Key, buffer: u32, first: &Header) -> Self {
        let credit = (first.buffer_size, first.forwarded);
        Self { key, buffer, received: 0, sent: 0, credit, shut: 0, reset: false }
    }

    fn header(&self, operation: Operation) -> Header {
        let forwarded = self.received as u32;
        Header { forwarded, ..packet(self.key, operation, self.buffer) }
    }

    pub(super) fn say(&self, guest: &mut Guest<'_>, operation: Operation, flags: u32) {
        guest.send(&Header { flags, ..self.header(operation) }, &[]);
    }

    /// Bytes the host has room for.
    pub(super) fn credit(&self) -> usize {
        let in_flight = (self.sent as u32).wrapping_sub(self.credit.1);
        self.credit.0.checked_sub(in_flight).unwrap() as usize
    }

    /// Sends the next bytes of the stream, as many as there is credit for, at most `most`.
    pub(super) fn send(&mut self, guest: &mut Guest<'_>, most: usize) -> usize {
        let count = most.min(self.credit()).min(MOST_DATA);
        if count > 0 {
            self.send_unasked(guest, count);
        }
        count
    }

    /// The same whether or not there is credit.
    pub(super) fn send_unasked(&mut self, guest: &mut Guest<'_>, count: usize) {
        let length = u32::try_from(count).unwrap();
        let header = Header { length, ..self.header(Operation::ReadWrite) };
        guest.send(&header, &super::bytes(self.sent, count));
        self.sent += count;
    }

    /// Takes the next packet, which is for this socket, and returns its operation.
    pub(super) fn take(&mut self, guest: &mut Guest<'_>) -> Operation {
        let (header, data) = guest.next();
        self.took(&header, &data)
    }

    /// Takes what has arrived.
    pub(super) fn poll(&mut self, guest: &mut Guest<'_>) {
        while let Some((header, data)) = guest.poll() {
            self.took(&header, &data);
        }
    }

    fn took(&mut self, header: &Header, data: &[u8]) -> Operation {
        assert_eq!((header.source_port, header.destination_port), self.key);
        assert!(data.len() <= self.buffer as usize, "more than there was credit for");
        check(data, self.received);
        self.received += data.len();
        self.credit = (header.buffer_size, header.forwarded);
        match header.operation.unwrap() {
            Operation::Shutdown => self.shut |= header.flags,
            Operation::Reset => self.reset = true,
            _ => {}
        }
        header.operation.unwrap()
    }
}
