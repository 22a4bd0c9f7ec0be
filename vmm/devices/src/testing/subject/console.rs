//! The console.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::Plugged;
use super::Subject;
use crate::testing::Buffer;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::virtio::console::Console;

/// The console.
pub const CONSOLE: Subject = Subject { name: "console", plug, works, refusing: &[(1, 0)] };

/// Counts what is printed.
struct Counter(Arc<AtomicUsize>);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn plug(machine: &Machine) -> Plugged {
    let count = Arc::default();
    Plugged { slot: machine.plug(Console::new(Box::new(Counter(Arc::clone(&count))))), host: Box::new(count) }
}

fn works(machine: &Machine, slot: u8) {
    let driver = Driver::negotiate(machine, slot, 0);
    let mut queues = driver.queues();
    driver.ready();
    let text = machine.allocate(16);
    assert_eq!(queues[1].request(&[Buffer::Read(text, 16)]), 0);
    driver.reset();
}
