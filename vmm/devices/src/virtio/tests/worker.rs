//! A device's thread and its handler.

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::worker::Handler;
use crate::virtio::worker::Interest;
use crate::virtio::worker::Worker;

struct Echo {
    input: EventFd,
    output: EventFd,
    seen: u64,
}

impl Handler for Echo {
    fn start(&mut self, _: &Interest) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    fn ready(&mut self, token: u64, _: EventSet, _: &Interest) -> ControlFlow<()> {
        assert_eq!(token, 7);
        self.seen += self.input.read().unwrap();
        self.output.write(1).unwrap();
        ControlFlow::Continue(())
    }
}

#[test]
fn stop_hands_the_handler_back() {
    let (input, output) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    let echo = Echo { input: input.try_clone().unwrap(), output: output.try_clone().unwrap(), seen: 0 };
    let worker = Worker::spawn("echo", echo, &[(input.as_raw_fd(), 7)]).unwrap();
    input.write(3).unwrap();
    output.read().unwrap();
    assert_eq!(worker.stop().unwrap().seen, 3);
}

struct Tireless(EventFd);

impl Handler for Tireless {
    fn start(&mut self, interest: &Interest) -> ControlFlow<()> {
        self.again(interest)
    }
    fn ready(&mut self, _: u64, _: EventSet, _: &Interest) -> ControlFlow<()> {
        unreachable!("it waits for nothing")
    }
    fn again(&mut self, interest: &Interest) -> ControlFlow<()> {
        self.0.write(1).unwrap();
        interest.again();
        ControlFlow::Continue(())
    }
}

#[test]
fn work_without_end_comes_back_and_can_be_stopped() {
    let turns = EventFd::new(vmm_sys_util::eventfd::EFD_SEMAPHORE).unwrap();
    let worker = Worker::spawn("tireless", Tireless(turns.try_clone().unwrap()), &[]).unwrap();
    for _ in 0..10 {
        turns.read().unwrap();
    }
    assert!(worker.stop().is_some());
}
