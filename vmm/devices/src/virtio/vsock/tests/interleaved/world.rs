//! The device's thread with its connections, and the two queues between it and a guest.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::EventSet;

use super::Interest;
use super::connections::Connections;
use super::os::EventFd;
use super::os::Mutex;
use super::packet::Header;
use super::ports::VsockPorts;
use crate::io_thread::tests::interleaved::Handler;
use crate::io_thread::tests::interleaved::Running;
use crate::virtio::buffers::Buffers;

pub(super) const CID: u64 = 3;
/// Receive buffers of the guest, and bytes in each.
const RECEIVE_BUFFERS: usize = 2;
const ROOM: usize = 2;
/// Events of sockets in a scenario. With more, they are made by the device for itself.
const MOST_EVENTS: usize = 100;

const QUEUES: u32 = 0;
const PORTS: u32 = 1;

pub(super) type Packet = (Header, Vec<u8>);

/// What guest and device share.
pub(super) struct Queues {
    transmit: Mutex<VecDeque<Packet>>,
    receive: Mutex<VecDeque<Packet>>,
    notification: EventFd,
    interrupt: EventFd,
}

impl Queues {
    pub(super) fn new() -> Arc<Self> {
        let event = || EventFd::new(0).unwrap();
        let queues = (Mutex::new(VecDeque::new()), Mutex::new(VecDeque::new()));
        Arc::new(Self { transmit: queues.0, receive: queues.1, notification: event(), interrupt: event() })
    }

    /// For the guest.
    pub(super) fn send(&self, packet: Packet) {
        self.transmit.lock().push_back(packet);
        self.notification.write(1).unwrap();
    }

    /// For the guest: waits for a packet, and gives its buffer back.
    pub(super) fn receive(&self) -> Packet {
        loop {
            let packet = self.receive.lock().pop_front();
            if let Some(packet) = packet {
                self.notification.write(1).unwrap();
                return packet;
            }
            self.interrupt.wait();
        }
    }
}

/// What is on the device's thread.
pub(super) struct Device {
    pub(super) connections: Connections,
    ports: Arc<VsockPorts>,
    queues: Arc<Queues>,
    events: usize,
}

impl Device {
    pub(super) fn begin(ports: &Arc<VsockPorts>, queues: &Arc<Queues>) -> Running<Self> {
        let connections = Connections::new(CID, ports.clone());
        let descriptors = [(queues.notification.as_raw_fd(), QUEUES), (ports.wake_fd(), PORTS)];
        let device = Self { connections, ports: ports.clone(), queues: queues.clone(), events: 0 };
        Running::begin(device, &descriptors)
    }

    /// As the worker of the device does, with other queues.
    fn work(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        while self.connections.can_receive() {
            let Some((header, mut data)) = self.queues.transmit.lock().pop_front() else { break };
            self.connections.receive(&header, Buffers::from_bytes(&mut data), interest);
        }
        while self.connections.has_output() && self.queues.receive.lock().len() < RECEIVE_BUFFERS {
            let mut data = vec![0; ROOM];
            let Some(header) = self.connections.next(&Buffers::from_bytes(&mut data), interest) else {
                break;
            };
            data.truncate(header.length as usize);
            self.queues.receive.lock().push_back((header, data));
            self.queues.interrupt.write(1).unwrap();
        }
        assert!(self.connections.kept() <= self.connections.count() * super::BUFFER_SIZE as usize);
        ControlFlow::Continue(())
    }
}

impl Handler for Device {
    fn start(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        self.connections.watch(interest);
        self.connections.connect(interest);
        self.work(interest)
    }

    fn ready(&mut self, token: u32, events: EventSet, interest: &mut Interest<'_>) -> ControlFlow<()> {
        match token {
            QUEUES => drop(self.queues.notification.read()),
            PORTS => self.connections.connect(interest),
            _ => {
                self.events += 1;
                assert!(self.events < MOST_EVENTS, "the thread does not come to rest");
                self.connections.ready(token, events, interest);
            }
        }
        self.work(interest)
    }

    fn again(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        self.work(interest)
    }
}

impl Drop for Device {
    /// The device is gone, as its reset and its end have it.
    fn drop(&mut self) {
        self.connections.close();
        self.ports.close();
    }
}
