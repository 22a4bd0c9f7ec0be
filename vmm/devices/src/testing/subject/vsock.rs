//! The sockets between guest and host.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Plugged;
use super::Subject;
use crate::testing::Buffer;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::virtio::vsock::Vsock;
use crate::virtio::vsock::VsockPorts;

/// The sockets, with somebody on a port who never reads.
pub const VSOCK: Subject = Subject { name: "vsock", plug, works, refusing: &[(1, 0)] };

/// Port of the host where connections are taken.
const PORT: u8 = 7;
/// Streams kept open.
const MOST: usize = 8;
/// Bytes of a packet's header (virtio 1.2 §5.10.6), and its operations.
const HEADER: u32 = 44;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

fn plug(machine: &Machine) -> Plugged {
    let ports = VsockPorts::new().unwrap();
    let streams = Arc::new(Mutex::new(Vec::<UnixStream>::new()));
    let kept = streams.clone();
    let accept = move |stream| {
        let mut kept = kept.lock();
        if kept.len() < MOST {
            kept.push(stream);
        }
    };
    ports.listen(PORT.into(), Box::new(accept)).unwrap();
    let vsock = Vsock::new(3, ports.clone());
    Plugged { slot: machine.plug(vsock), host: Box::new((ports, streams)) }
}

/// A connection is accepted.
fn works(machine: &Machine, slot: u8) {
    let driver = Driver::negotiate(machine, slot, 0);
    let mut queues = driver.queues();
    driver.ready();
    let (incoming, outgoing) = (machine.allocate(4096), machine.allocate(HEADER.into()));
    queues[0].offer(&[Buffer::Write(incoming, 4096)]);
    queues[0].notify();
    let mut header = [0; HEADER as usize];
    (header[0], header[8], header[16], header[20], header[28], header[30]) = (3, 2, 99, PORT, 1, REQUEST);
    machine.store(outgoing, &header);
    assert_eq!(queues[1].request(&[Buffer::Read(outgoing, HEADER)]), 0);
    loop {
        assert_eq!(queues[0].wait_used().length, HEADER);
        let answer = machine.load(incoming, HEADER as usize);
        assert_eq!((answer[0], answer[8]), (2, 3), "from the host to the guest");
        if (answer[16], answer[20]) == (PORT, 99) {
            assert_eq!(answer[30], RESPONSE);
            break;
        }
        // A connection the host asked for before there was a driver.
        queues[0].offer(&[Buffer::Write(incoming, 4096)]);
        queues[0].notify();
    }
    driver.reset();
}
