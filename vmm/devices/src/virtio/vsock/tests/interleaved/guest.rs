//! A guest that keeps to the rules (virtio 1.2 §5.10.6) on one connection: sends a number of bytes as its credit
//! allows, takes what comes, and says how much it has room for.

use std::sync::Arc;

use kiai_interleave::shuttle::rand::Rng;
use kiai_interleave::shuttle::rand::thread_rng;

use super::connection::Key;
use super::packet::HOST_CID;
use super::packet::Header;
use super::packet::Operation;
use super::packet::SHUTDOWN_BOTH;
use super::packet::SHUTDOWN_RECEIVE;
use super::packet::SHUTDOWN_SEND;
use super::packet::TYPE_STREAM;
use super::world::CID;
use super::world::Queues;

/// Bytes it has room for.
const BUFFER: u32 = 3;

/// Byte `position` of a stream.
pub(super) fn byte(position: u32) -> u8 {
    position as u8 + 1
}

/// One end of a connection.
pub(super) struct Guest {
    queues: Arc<Queues>,
    /// Port on the host, port in the guest.
    key: Key,
    /// Bytes to send, sent, and those the device has passed on; the device's buffer.
    length: u32,
    sent: u32,
    passed_on: u32,
    device_buffer: u32,
    /// Bytes received, and how many of them the device was told of as taken.
    received: u32,
    told: u32,
    /// Says what it has room for only when it is asked.
    lazy: bool,
    /// Shutdown flags said and heard.
    said: u32,
    heard: u32,
}

/// How it ended.
pub(super) struct Ended {
    pub(super) received: u32,
    pub(super) sent: u32,
}

impl Guest {
    /// Opens a connection to `port` of the host, over which `length` bytes are to be sent.
    pub(super) fn connect(queues: &Arc<Queues>, port: u32, length: u32) -> Self {
        let mut guest = Self::new(queues, (port, 1), length);
        guest.send(Operation::Request, 0, Vec::new());
        let (header, _) = queues.receive();
        assert_eq!(header.operation, Some(Operation::Response));
        guest.learn(&header);
        guest
    }

    /// Takes a connection the host asks for.
    pub(super) fn accept(queues: &Arc<Queues>, length: u32) -> Self {
        let (header, _) = queues.receive();
        assert_eq!(header.operation, Some(Operation::Request));
        let mut guest = Self::new(queues, (header.source_port, header.destination_port), length);
        guest.learn(&header);
        guest.send(Operation::Response, 0, Vec::new());
        guest
    }

    fn new(queues: &Arc<Queues>, key: Key, length: u32) -> Self {
        Self {
            queues: queues.clone(),
            key,
            length,
            sent: 0,
            passed_on: 0,
            device_buffer: 0,
            received: 0,
            told: 0,
            lazy: thread_rng().gen_bool(0.5),
            said: 0,
            heard: 0,
        }
    }

    /// Until the device says that the connection is no more.
    pub(super) fn run(mut self) -> Ended {
        loop {
            self.send_what_fits();
            let (header, data) = self.queues.receive();
            self.learn(&header);
            match header.operation.unwrap() {
                Operation::Reset => return Ended { received: self.received, sent: self.sent },
                Operation::ReadWrite => self.take(&data),
                Operation::CreditRequest => self.send(Operation::CreditUpdate, 0, Vec::new()),
                Operation::CreditUpdate => {}
                Operation::Shutdown => self.heard |= header.flags,
                other => panic!("{other:?} on an open connection"),
            }
        }
    }

    fn learn(&mut self, header: &Header) {
        (self.device_buffer, self.passed_on) = (header.buffer_size, header.forwarded);
    }

    fn take(&mut self, data: &[u8]) {
        assert_eq!(self.heard & SHUTDOWN_SEND, 0, "data after the end");
        for &got in data {
            assert_eq!(got, byte(self.received));
            self.received += 1;
        }
        assert!(self.received - self.told <= BUFFER, "more than there is room for");
        if self.received - self.told == BUFFER && !self.lazy {
            self.send(Operation::CreditUpdate, 0, Vec::new());
        }
    }

    fn send_what_fits(&mut self) {
        while self.sent < self.length
            && self.heard & SHUTDOWN_RECEIVE == 0
            && self.sent - self.passed_on < self.device_buffer
        {
            self.sent += 1;
            self.send(Operation::ReadWrite, 0, vec![byte(self.sent - 1)]);
        }
        let done = self.sent == self.length || self.heard & SHUTDOWN_RECEIVE != 0;
        let mut says = self.said | if done { SHUTDOWN_SEND } else { 0 };
        if says == SHUTDOWN_SEND && self.heard & SHUTDOWN_SEND != 0 {
            says = SHUTDOWN_BOTH;
        }
        if says != self.said {
            self.said = says;
            self.send(Operation::Shutdown, says, Vec::new());
        }
    }

    /// Every packet says what there is room for.
    fn send(&mut self, operation: Operation, flags: u32, data: Vec<u8>) {
        self.told = self.received;
        let header = Header {
            source_cid: CID,
            destination_cid: HOST_CID,
            source_port: self.key.1,
            destination_port: self.key.0,
            length: data.len() as u32,
            kind: TYPE_STREAM,
            operation: Some(operation),
            flags,
            buffer_size: BUFFER,
            forwarded: self.received,
        };
        self.queues.send((header, data));
    }
}
