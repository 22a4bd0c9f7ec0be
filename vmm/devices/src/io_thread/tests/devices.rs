//! A device whose work panics, as its driver and its neighbours see it.

use std::ops::ControlFlow;
use std::os::fd::AsRawFd;

use event_manager::EventSet;

use crate::io_thread::Handler;
use crate::io_thread::Hung;
use crate::io_thread::Interest;
use crate::io_thread::Pausable;
use crate::io_thread::Work;
use crate::testing::Buffer;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::virtio::device::ActivateError;
use crate::virtio::device::Activation;
use crate::virtio::device::DeviceState;
use crate::virtio::device::VirtioDevice;
use crate::virtio::rng::Rng;

/// On the shared thread, as devices are unless they say otherwise.
#[derive(Default)]
struct Nervous(Work<Panics>);

struct Panics(Activation);

impl VirtioDevice for Nervous {
    fn device_id(&self) -> u16 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (thread, breaks) = (activation.thread(0).clone(), activation.breaks());
        let descriptors = [(activation.queues[0].notification.as_raw_fd(), 0)];
        self.0.begin((&thread, "nervous"), Panics(activation), &descriptors, breaks)?;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Hung> {
        self.0.end().map(drop)
    }

    fn work(&mut self) -> Vec<&mut dyn Pausable> {
        vec![&mut self.0]
    }

    fn save(&self) -> DeviceState {
        DeviceState::of(self.0.paused().into_iter().flat_map(|panics| &panics.0.queues))
    }
}

impl Handler for Panics {
    fn start(&mut self, _: &mut Interest<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn ready(&mut self, _: u32, _: EventSet, _: &mut Interest<'_>) -> ControlFlow<()> {
        panic!("over a queue of {} chains", self.0.queues.len())
    }
}

#[test]
fn a_panic_breaks_one_device_until_its_reset() {
    let machine = Machine::new();
    let (nervous, rng) = (machine.plug(Nervous::default()), machine.plug(Rng::new()));
    let neighbour = Driver::negotiate(&machine, rng, 0);
    let mut entropy = neighbour.queue(0, None);
    neighbour.ready();
    let buffer = machine.allocate(64);
    for _ in 0..2 {
        let driver = Driver::negotiate(&machine, nervous, 0);
        let queue = driver.queue(0, None);
        driver.ready();
        assert_eq!(entropy.request(&[Buffer::Write(buffer, 64)]), 64);
        queue.notify();
        driver.wait_needs_reset();
        assert_eq!(entropy.request(&[Buffer::Write(buffer, 64)]), 64);
        driver.reset();
        assert_eq!(driver.function.status(), 0);
    }
}
