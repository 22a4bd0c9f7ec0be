//! The thread of one queue pair: a receive queue, a transmit queue and a tap queue.
//!
//! The tap is watched for edges: what it was last seen to be is remembered (`readable`, `writable`) and taken
//! back only when it refuses. So a full ring or a full tap costs nothing until it changes.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;

use event_manager::EventSet;
use vm_memory::GuestAddressSpace;

use super::offloads;
use super::receive::Receive;
use super::report;
use super::taps::Taps;
use super::transmit::Transmit;
use crate::io_thread::Handler;
use crate::io_thread::Interest;
use crate::platform::GuestMemory;
use crate::virtio::device::ActiveQueue;
use crate::virtio::device::VirtioInterrupt;
use crate::virtio::queue;

/// Tokens of the worker.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const TAP: u32 = 2;
const ATTACHED: u32 = 3;

/// What is on the thread.
pub(super) struct Pair {
    index: usize,
    features: u64,
    taps: Arc<Taps>,
    receive: Receive,
    transmit: Transmit,
    memory: GuestMemory,
    interrupt: Arc<dyn VirtioInterrupt>,
}

impl Pair {
    #[expect(clippy::too_many_arguments, reason = "called once, with everything the thread needs")]
    pub(super) fn new(
        index: usize,
        taps: &Arc<Taps>,
        receive: ActiveQueue,
        transmit: ActiveQueue,
        features: u64,
        mtu: u16,
        memory: &GuestMemory,
        interrupt: &Arc<dyn VirtioInterrupt>,
    ) -> Self {
        Self {
            index,
            features,
            taps: taps.clone(),
            receive: Receive::new(receive, features, mtu),
            transmit: Transmit::new(transmit),
            memory: memory.clone(),
            interrupt: interrupt.clone(),
        }
    }

    pub(super) fn descriptors(&self) -> [(RawFd, u32); 3] {
        [
            (self.receive.queue.notification.as_raw_fd(), RECEIVE),
            (self.transmit.queue.notification.as_raw_fd(), TRANSMIT),
            (self.taps.attached(self.index).as_raw_fd(), ATTACHED),
        ]
    }

    /// Does what can be done now, within a budget.
    fn work(&mut self, interest: &Interest<'_>) -> ControlFlow<()> {
        let memory = self.memory.memory();
        let tap = self.taps.tap(self.index).as_fd();
        let transmitted = self.transmit.run(&memory, tap, &self.interrupt);
        let more = transmitted.and_then(|more| Ok(self.receive.run(&memory, tap, &self.interrupt)? || more));
        let done = more.map(|more| {
            if more {
                interest.again();
            }
        });
        queue::stop_if_malformed("virtio-net", done, &self.interrupt)
    }

    /// Waits for edges of the tap. Anew for a queue that was detached: the kernel forgets who waits for one.
    fn watch_tap(&mut self, interest: &mut Interest<'_>) -> io::Result<()> {
        let fd = self.taps.tap(self.index).as_fd().as_raw_fd();
        let _ = interest.remove(fd);
        interest.add(fd, TAP, EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED)?;
        (self.receive.readable, self.transmit.writable) = (true, true);
        Ok(())
    }

    fn watch_and_work(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        match self.watch_tap(interest) {
            Ok(()) => self.work(interest),
            Err(e) => self.fail("cannot wait for the tap", &e),
        }
    }

    fn fail(&self, what: &str, error: &io::Error) -> ControlFlow<()> {
        report(what, error);
        self.interrupt.needs_reset();
        ControlFlow::Break(())
    }

    /// What holds for the whole interface, which the first pair sees to.
    fn set_up(&self) -> io::Result<()> {
        self.taps.configure(offloads(self.features))?;
        self.taps.use_pairs(self.taps.pairs())
    }

    pub(super) fn queues(&self) -> [&ActiveQueue; 2] {
        [&self.receive.queue, &self.transmit.queue]
    }
}

impl Handler for Pair {
    fn start(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        if self.index == 0
            && let Err(e) = self.set_up()
        {
            return self.fail("cannot set up the tap", &e);
        }
        self.watch_and_work(interest)
    }

    fn ready(&mut self, token: u32, events: EventSet, interest: &mut Interest<'_>) -> ControlFlow<()> {
        match token {
            RECEIVE => queue::clear(&self.receive.queue),
            TRANSMIT => queue::clear(&self.transmit.queue),
            ATTACHED => {
                let _ = self.taps.attached(self.index).read();
                return self.watch_and_work(interest);
            }
            _ => {
                self.receive.readable |= events.contains(EventSet::IN);
                self.transmit.writable |= events.contains(EventSet::OUT);
            }
        }
        self.work(interest)
    }

    fn again(&mut self, interest: &mut Interest<'_>) -> ControlFlow<()> {
        self.work(interest)
    }
}
