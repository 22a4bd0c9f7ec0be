//! A connection that has nothing to do gives the device's thread nothing to do.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;

use parking_lot::Mutex;

use super::guest::CID;
use super::guest::packet;
use crate::io_thread::tests::alone::Alone;
use crate::virtio::buffers::Buffers;
use crate::virtio::vsock::VsockPorts;
use crate::virtio::vsock::connections::Connections;
use crate::virtio::vsock::packet::Header;
use crate::virtio::vsock::packet::Operation;
use crate::virtio::vsock::packet::SHUTDOWN_SEND;

#[test]
fn a_stream_the_guest_has_half_closed_wakes_nobody() {
    let (ports, mut alone) = (VsockPorts::new().unwrap(), Alone::new());
    let (accepted, callers) = channel::<UnixStream>();
    let accepted = Mutex::new(accepted);
    ports.listen(1, Box::new(move |stream| accepted.lock().send(stream).unwrap())).unwrap();
    let mut connections = Connections::new(CID, ports);
    for (operation, flags) in [(Operation::Request, 0), (Operation::Shutdown, SHUTDOWN_SEND)] {
        let header = Header { flags, ..packet((1, 1), operation, 1000) };
        alone.with(|interest| connections.receive(&header, Buffers::from_bytes(&mut []), interest));
    }
    let _caller = callers.recv().unwrap();
    for _ in 0..10 {
        let events = alone.poll();
        if events.is_empty() {
            return;
        }
        for (token, events) in events {
            alone.with(|interest| connections.ready(token, events, interest));
        }
    }
    panic!("there is always one event more");
}
