//! Ports and connections, compiled again with threads, locks, events and sockets whose order a check chooses, and
//! with buffers so small that every wait for room happens.
//!
//! What one thread has alone needs no check: connections belong to the device's thread, and whatever changes them
//! takes `&mut self`. What they share with others is the ports' lock, the sockets, and the guest's packets.

mod guest;
mod ports_checks;
mod stream_checks;
mod world;

use crate::io_thread::tests::interleaved::Interest;
use crate::io_thread::tests::interleaved::os;
use crate::virtio::vsock::packet;

const BUFFER_SIZE: u32 = 4;
const MOST_CONNECTIONS: usize = 2;
const MOST_REFUSALS: usize = 2;

#[path = "../../connection.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
mod connection;

#[path = "../../connections.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
mod connections;

#[path = "../../ports.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
#[expect(dead_code, unreachable_pub, reason = "the product's callers are elsewhere")]
mod ports;
