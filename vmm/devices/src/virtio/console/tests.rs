//! What a driver may do to the console, right and wrong, and what comes of it.

use std::io;
use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Console;
use super::F_EMERG_WRITE;
use crate::testing::Buffer::Read as R;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::refuses_malformed_chains;

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn plugged() -> (Machine, u8, Paper) {
    let (machine, paper) = (Machine::new(), Paper::default());
    let slot = machine.plug(Console::new(Box::new(paper.clone())));
    (machine, slot, paper)
}

#[test]
fn output_arrives_whole_and_in_order() {
    let (machine, slot, paper) = plugged();
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut queues = driver.queues();
    driver.ready();
    let text = machine.allocate(8192);
    let lines: Vec<u8> = (0..8192u32).map(|n| b'a' + (n % 26) as u8).collect();
    machine.store(text, &lines);
    assert_eq!(queues[1].request(&[R(text, 10), R(text + 10, 0), R(text + 10, 6000)]), 0);
    assert_eq!(queues[1].request(&[R(text + 6010, 2182)]), 0);
    assert_eq!(*paper.0.lock(), lines);
}

#[test]
fn one_request_cannot_bring_without_bound() {
    let (machine, slot, paper) = plugged();
    let driver = Driver::negotiate(&machine, slot, 0);
    let mut queues = driver.queues();
    driver.ready();
    let buffers = [R(0, 16 << 20); 10];
    assert_eq!(queues[1].request(&buffers), 0);
    assert_eq!(paper.0.lock().len(), 64 << 10);
}

#[test]
fn the_emergency_register_prints_before_there_are_queues() {
    let (machine, slot, paper) = plugged();
    let driver = Driver::negotiate(&machine, slot, F_EMERG_WRITE);
    assert_eq!(driver.features & F_EMERG_WRITE, F_EMERG_WRITE);
    for character in *b"panic" {
        machine.write(driver.function.device + 8, 4, u64::from(character));
    }
    assert_eq!(*paper.0.lock(), *b"panic");
}

#[test]
fn malformed_chains_stop_it_until_reset() {
    let (machine, slot, _) = plugged();
    refuses_malformed_chains(&machine, slot, 1, 0, |machine, slot| {
        let driver = Driver::negotiate(machine, slot, 0);
        let mut queues = driver.queues();
        driver.ready();
        assert_eq!(queues[1].request(&[R(0, 1)]), 0);
        driver.reset();
    });
}
