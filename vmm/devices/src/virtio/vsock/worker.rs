//! The device's thread: carries packets between the queues and the connections.

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;

use event_manager::EventSet;
use virtio_queue::QueueOwnedT;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryMmap;

use super::connections::Connections;
use super::events::Events;
use super::packet::HEADER_SIZE;
use super::packet::Header;
use super::ports::VsockPorts;
use crate::io_thread::Handler;
use crate::io_thread::Interest;
use crate::virtio::buffers::ChainBuffers;
use crate::virtio::device::Activation;
use crate::virtio::device::ActiveQueue;
use crate::virtio::queue;
use crate::virtio::queue::ChainError;

/// Tokens of the worker; connections have larger ones.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const PORTS: u32 = 2;
const EVENTS: u32 = 3;

/// Packets moved in one direction before the other has its turn.
const BUDGET: usize = 128;
/// Packets after which the driver is told, if it wants to know, without waiting for the end of a burst.
const BURST: usize = 16;

/// What is on the thread.
pub(super) struct Packets {
    connections: Connections,
    ports: Arc<VsockPorts>,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    events: Events,
    activation: Activation,
}

/// How a queue was left.
#[derive(PartialEq, Eq)]
enum Left {
    /// Until something happens there is nothing to do.
    Done,
    /// The budget ended first.
    More,
    /// There is no room for answers.
    Full,
}

impl Packets {
    pub(super) fn new(
        guest_cid: u64,
        ports: Arc<VsockPorts>,
        (receive, transmit, events): (ActiveQueue, ActiveQueue, Events),
        activation: Activation,
    ) -> Self {
        let connections = Connections::new(guest_cid, ports.clone());
        Self { connections, ports, receive, transmit, events, activation }
    }

    pub(super) fn descriptors(&self) -> Vec<(RawFd, u32)> {
        let queues = [
            (self.receive.notification.as_raw_fd(), RECEIVE),
            (self.transmit.notification.as_raw_fd(), TRANSMIT),
            (self.ports.wake_fd(), PORTS),
        ];
        queues.into_iter().chain(self.events.descriptor().map(|fd| (fd, EVENTS))).collect()
    }

    pub(super) fn queues(&self) -> impl Iterator<Item = &ActiveQueue> {
        [&self.receive, &self.transmit].into_iter().chain(self.events.queue())
    }

    /// Does what can be done now, within a budget.
    fn work(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        let memory = self.activation.memory.memory();
        let done = self.exchange(&memory, interest);
        queue::stop_if_malformed("virtio-vsock", done, &self.activation.interrupt)
    }

    fn exchange(&mut self, memory: &GuestMemoryMmap, interest: &mut Interest<'_>) -> Result<(), ChainError> {
        if !self.events.settle(memory, &self.activation.interrupt)? {
            return Ok(());
        }
        self.connections.connect(interest);
        let transmit = self.take(memory, interest)?;
        let receive = self.fill(memory, interest)?;
        let resume = transmit == Left::Full && self.connections.can_receive();
        if transmit == Left::More || receive == Left::More || resume {
            interest.again();
        }
        Ok(())
    }

    /// The transmit queue: packets from the guest (§5.10.6.1).
    fn take(&mut self, memory: &GuestMemoryMmap, interest: &mut Interest<'_>) -> Result<Left, ChainError> {
        let mut budget = BUDGET;
        let left = loop {
            self.transmit.queue.disable_notification(memory)?;
            while budget > 0 && self.connections.can_receive() {
                let Some(chain) = queue::next(&mut self.transmit, memory)? else { break };
                let mut chain = ChainBuffers::new(memory, chain, self.transmit.queue.size())?;
                if chain.readable.len() < HEADER_SIZE {
                    return Err(ChainError::Layout("a packet shorter than its header"));
                }
                let mut header = [0; HEADER_SIZE];
                chain.readable.take_front(HEADER_SIZE).copy_to(&mut header);
                self.connections.receive(&Header::decode(&header), chain.readable, interest);
                self.transmit.queue.add_used(memory, chain.head, 0)?;
                budget -= 1;
                if budget.is_multiple_of(BURST) {
                    queue::notify(&mut self.transmit, memory, &self.activation.interrupt)?;
                }
            }
            if budget == 0 {
                break Left::More;
            }
            if !self.connections.can_receive() {
                break Left::Full;
            }
            if !self.transmit.queue.enable_notification(memory)? {
                break Left::Done;
            }
        };
        if budget < BUDGET {
            queue::notify(&mut self.transmit, memory, &self.activation.interrupt)?;
        }
        Ok(left)
    }

    /// The receive queue: packets for the guest, as long as it has buffers for them.
    fn fill(&mut self, memory: &GuestMemoryMmap, interest: &mut Interest<'_>) -> Result<Left, ChainError> {
        let mut budget = BUDGET;
        while budget > 0 && self.connections.has_output() {
            self.receive.queue.disable_notification(memory)?;
            let Some(chain) = queue::next(&mut self.receive, memory)? else {
                if self.receive.queue.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            let mut chain = ChainBuffers::new(memory, chain, self.receive.queue.size())?;
            if chain.writable.len() <= HEADER_SIZE {
                return Err(ChainError::Layout("a receive buffer without room for data"));
            }
            let header_room = chain.writable.take_front(HEADER_SIZE);
            let Some(header) = self.connections.next(&chain.writable, interest) else {
                self.receive.queue.go_to_previous_position();
                break;
            };
            header_room.copy_from(0, &header.encode());
            let header_size = u32::try_from(HEADER_SIZE).expect("44");
            self.receive.queue.add_used(memory, chain.head, header_size + header.length)?;
            budget -= 1;
            if budget.is_multiple_of(BURST) {
                queue::notify(&mut self.receive, memory, &self.activation.interrupt)?;
            }
        }
        if budget < BUDGET {
            queue::notify(&mut self.receive, memory, &self.activation.interrupt)?;
        }
        Ok(if budget == 0 { Left::More } else { Left::Done })
    }
}

impl Handler for Packets {
    fn start(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        self.connections.watch(interest);
        self.work(interest)
    }

    fn ready(&mut self, token: u32, events: EventSet, interest: &mut Interest<'_>) -> ControlFlow<()> {
        match token {
            RECEIVE => queue::clear(&self.receive),
            TRANSMIT => queue::clear(&self.transmit),
            PORTS => self.ports.clear_wake(),
            EVENTS => self.events.clear(),
            _ => self.connections.ready(token, events, interest),
        }
        self.work(interest)
    }

    fn again(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        self.work(interest)
    }

    fn stop(&mut self) {
        // Nobody serves them any more.
        self.connections.close();
    }
}
