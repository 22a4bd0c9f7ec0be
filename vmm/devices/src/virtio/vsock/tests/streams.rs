//! What callers and guests that keep the rules see.

use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::bytes;
use super::check;
use super::guest::Guest;
use super::guest::Host;
use super::guest::MOST_DATA;
use super::guest::PATIENCE;
use super::guest::Socket;
use super::guest::packet;
use crate::virtio::vsock::BUFFER_SIZE;
use crate::virtio::vsock::PortInUse;
use crate::virtio::vsock::packet::Operation;
use crate::virtio::vsock::packet::SHUTDOWN_BOTH;
use crate::virtio::vsock::packet::SHUTDOWN_RECEIVE;
use crate::virtio::vsock::packet::SHUTDOWN_SEND;

const MIB: usize = 1 << 20;
const KEY: (u32, u32) = (1024, 5000);

/// Reads to the end and checks that it is `length` bytes of a stream.
fn read_stream(mut stream: UnixStream, length: usize) -> UnixStream {
    let (mut position, mut chunk) = (0, vec![0; 100_000]);
    loop {
        let count = stream.read(&mut chunk).unwrap();
        if count == 0 {
            break;
        }
        check(&chunk[..count], position);
        position += count;
    }
    assert_eq!(position, length);
    stream
}

#[test]
fn a_guest_sends_64_mib() {
    let host = Host::new();
    let accepted = host.listen(KEY.0);
    let mut guest = Guest::new(&host, 8);
    let mut socket = Socket::connect(&mut guest, KEY, 4096);
    let stream = accepted.recv().unwrap();
    let reader = std::thread::spawn(move || read_stream(stream, 64 * MIB));
    while socket.sent < 64 * MIB {
        socket.poll(&mut guest);
        if socket.send(&mut guest, 64 * MIB - socket.sent) == 0 {
            // All that may be sent is sent: the next packet brings credit.
            assert_eq!(socket.take(&mut guest), Operation::CreditUpdate);
        }
    }
    socket.say(&mut guest, Operation::Shutdown, SHUTDOWN_SEND);
    drop(reader.join().unwrap());
    while socket.shut != SHUTDOWN_BOTH {
        socket.take(&mut guest);
    }
    socket.say(&mut guest, Operation::Reset, 0);
    // The name is free.
    Socket::connect(&mut guest, KEY, 4096);
}

#[test]
fn a_guest_receives_64_mib_with_little_credit() {
    let host = Host::new();
    let mut stream = host.ports.connect(KEY.1).unwrap();
    let writer = std::thread::spawn(move || {
        for position in (0..64 * MIB).step_by(MIB) {
            stream.write_all(&bytes(position, MIB)).unwrap();
        }
    });
    let mut guest = Guest::new(&host, 16);
    let mut socket = Socket::accept(&mut guest, 10_000);
    let mut unsaid = 0;
    while socket.shut != SHUTDOWN_BOTH {
        let before = socket.received;
        let operation = socket.take(&mut guest);
        unsaid += socket.received - before;
        if unsaid > 6000 || operation == Operation::CreditRequest {
            socket.say(&mut guest, Operation::CreditUpdate, 0);
            unsaid = 0;
        }
    }
    assert_eq!(socket.received, 64 * MIB);
    writer.join().unwrap();
    socket.say(&mut guest, Operation::Reset, 0);
}

#[test]
fn a_caller_that_does_not_read_holds_the_guest_back() {
    let host = Host::new();
    let accepted = host.listen(KEY.0);
    let mut guest = Guest::new(&host, 8);
    let mut socket = Socket::connect(&mut guest, KEY, 4096);
    let stream = accepted.recv().unwrap();
    loop {
        socket.poll(&mut guest);
        if socket.send(&mut guest, MOST_DATA) == 0 {
            // Ask: the answer comes in order, after all that was sent is dealt with.
            socket.say(&mut guest, Operation::CreditRequest, 0);
            while socket.take(&mut guest) != Operation::CreditUpdate {}
            if socket.credit() == 0 {
                break;
            }
        }
    }
    // The socket's buffer and ours.
    assert!(socket.sent > BUFFER_SIZE as usize && socket.sent < 4 * BUFFER_SIZE as usize, "{}", socket.sent);
    // The guest goes; the caller still gets everything, and the name is free at once.
    socket.say(&mut guest, Operation::Shutdown, SHUTDOWN_BOTH);
    assert_eq!(socket.take(&mut guest), Operation::Reset);
    Socket::connect(&mut guest, KEY, 4096);
    let mut stream = read_stream(stream, socket.sent);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn bytes_written_before_the_guest_is_up_arrive() {
    let host = Host::new();
    let mut stream = host.ports.connect(KEY.1).unwrap();
    stream.write_all(&bytes(0, 5000)).unwrap();
    drop(stream);
    let mut guest = Guest::new(&host, 8);
    let mut socket = Socket::accept(&mut guest, 1 << 20);
    while socket.shut != SHUTDOWN_BOTH {
        socket.take(&mut guest);
    }
    assert_eq!(socket.received, 5000);
}

#[test]
fn each_direction_ends_by_itself() {
    let host = Host::new();
    let accepted = host.listen(KEY.0);
    let mut guest = Guest::new(&host, 8);
    // The guest ends first.
    let mut socket = Socket::connect(&mut guest, KEY, 1 << 20);
    let mut stream = accepted.recv().unwrap();
    socket.send(&mut guest, 10);
    socket.say(&mut guest, Operation::Shutdown, SHUTDOWN_SEND);
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got, bytes(0, 10));
    stream.write_all(&bytes(0, 20)).unwrap();
    assert_eq!(socket.take(&mut guest), Operation::ReadWrite);
    drop(stream);
    while socket.shut != SHUTDOWN_BOTH {
        assert_eq!(socket.take(&mut guest), Operation::Shutdown);
    }
    assert_eq!(socket.received, 20);
    socket.say(&mut guest, Operation::Reset, 0);
    // The caller ends first.
    let mut socket = Socket::connect(&mut guest, (KEY.0, 5001), 1 << 20);
    let mut stream = accepted.recv().unwrap();
    stream.write_all(&bytes(0, 30)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(socket.take(&mut guest), Operation::ReadWrite);
    assert_eq!(socket.take(&mut guest), Operation::Shutdown);
    assert_eq!((socket.received, socket.shut), (30, SHUTDOWN_SEND));
    socket.send(&mut guest, 40);
    got.resize(40, 0);
    stream.read_exact(&mut got).unwrap();
    check(&got, 0);
    socket.say(&mut guest, Operation::Shutdown, SHUTDOWN_BOTH);
    assert_eq!(stream.read(&mut got).unwrap(), 0);
    while !socket.reset {
        socket.take(&mut guest);
    }
}

#[test]
fn a_direction_the_other_does_not_want_is_refused() {
    let host = Host::new();
    let accepted = host.listen(KEY.0);
    let mut guest = Guest::new(&host, 8);
    // The guest does not receive.
    let socket = Socket::connect(&mut guest, KEY, 4096);
    let mut stream = accepted.recv().unwrap();
    socket.say(&mut guest, Operation::Shutdown, SHUTDOWN_RECEIVE);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    // The caller does not: it closes with data unread, which nobody can want.
    let mut socket = Socket::connect(&mut guest, (KEY.0, 5001), 4096);
    let stream = accepted.recv().unwrap();
    socket.send(&mut guest, 100);
    drop(stream);
    while socket.shut != SHUTDOWN_BOTH {
        assert_eq!(socket.take(&mut guest), Operation::Shutdown);
    }
    // What was on its way is not a mistake.
    socket.send(&mut guest, 100);
    socket.say(&mut guest, Operation::Shutdown, SHUTDOWN_BOTH);
    while !socket.reset {
        socket.take(&mut guest);
    }
}

#[test]
fn refusals_are_seen_on_both_sides() {
    let host = Host::new();
    let _accepted = host.listen(KEY.0);
    assert_eq!(host.ports.listen(KEY.0, Box::new(|_| {})), Err(PortInUse(KEY.0)));
    let mut guest = Guest::new(&host, 8);
    guest.send(&packet((1, 2), Operation::Request, 4096), &[]);
    guest.expect((1, 2), Operation::Reset);
    host.ports.unlisten(KEY.0);
    guest.send(&packet(KEY, Operation::Request, 4096), &[]);
    guest.expect(KEY, Operation::Reset);

    let mut stream = host.ports.connect(9).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (request, _) = guest.next();
    assert_eq!((request.operation, request.destination_port), (Some(Operation::Request), 9));
    guest.send(&packet((request.source_port, 9), Operation::Reset, 0), &[]);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_reset_closes_streams_and_keeps_ports() {
    let host = Host::new();
    let accepted = host.listen(KEY.0);
    let mut guest = Guest::new(&host, 8);
    let mut socket = Socket::connect(&mut guest, KEY, 4096);
    let mut stream = accepted.recv().unwrap();
    // In the middle of a transfer in both directions, neither of which can end.
    while socket.send(&mut guest, MOST_DATA) > 0 {}
    stream.set_nonblocking(true).unwrap();
    while stream.write(&bytes(0, 1000)).is_ok() {}
    stream.set_nonblocking(false).unwrap();
    guest.reset();
    let (mut position, mut chunk) = (0, vec![0; 1000]);
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        check(&chunk[..count], position);
        position += count;
    }
    assert!(stream.write(b"x").is_err());

    // What is asked for while there is no driver is asked for when there is one.
    let mut asked = host.ports.connect(9).unwrap();
    let mut guest = Guest::new(&host, 8);
    let mut answered = Socket::accept(&mut guest, 4096);
    let mut socket = Socket::connect(&mut guest, KEY, 4096);
    assert_eq!(socket.send(&mut guest, 10), 10);
    accepted.recv().unwrap().read_exact(&mut [0; 10]).unwrap();
    answered.send(&mut guest, 10);
    asked.read_exact(&mut [0; 10]).unwrap();
    // The device goes.
    host.machine.segment.remove(guest.driver.function.slot);
    assert_eq!(asked.read(&mut [0]).unwrap(), 0);
    assert_eq!(host.ports.connect(9).unwrap_err().kind(), ErrorKind::NotConnected);
}

#[test]
fn many_connections_share_the_queues() {
    let host = Host::new();
    let accepted = host.listen(KEY.0);
    let mut guest = Guest::new(&host, 8);
    let mut sockets = Vec::new();
    for port in 0..50 {
        sockets.push(Socket::connect(&mut guest, (KEY.0, port), 1 << 20));
        // Echoes all it gets.
        let mut stream = accepted.recv().unwrap();
        std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
    }
    for socket in &mut sockets {
        assert_eq!(socket.send(&mut guest, 10_000), 10_000);
        socket.say(&mut guest, Operation::Shutdown, SHUTDOWN_SEND);
    }
    let mut got = vec![0; sockets.len()];
    let mut open = sockets.len();
    while open > 0 {
        let (header, data) = guest.next();
        let port = header.destination_port as usize;
        check(&data, got[port]);
        got[port] += data.len();
        if header.operation == Some(Operation::Shutdown) && header.flags == SHUTDOWN_BOTH {
            open -= 1;
        }
    }
    assert_eq!(got, vec![10_000; sockets.len()]);
}
