//! Guests that keep no rule: the worst that happens is that their device stops until they reset it.

use super::guest::CID;
use super::guest::Guest;
use super::guest::Host;
use super::guest::Socket;
use super::guest::packet;
use crate::testing::Buffer;
use crate::testing::Descriptor;
use crate::virtio::vsock::BUFFER_SIZE;
use crate::virtio::vsock::MOST_CONNECTIONS;
use crate::virtio::vsock::MOST_REFUSALS;
use crate::virtio::vsock::packet::HEADER_SIZE;
use crate::virtio::vsock::packet::Header;
use crate::virtio::vsock::packet::Operation;
use crate::virtio::vsock::packet::SHUTDOWN_SEND;

const KEY: (u32, u32) = (1024, 5000);

/// The connection gets a RST, and works again afterwards.
fn is_reset_by(wrong: impl Fn(&mut Guest<'_>, &mut Socket)) {
    let host = Host::new();
    let _accepted = host.listen(KEY.0);
    let mut guest = Guest::new(&host, 8);
    for _ in 0..2 {
        let mut socket = Socket::connect(&mut guest, KEY, 4096);
        wrong(&mut guest, &mut socket);
        while !socket.reset {
            socket.take(&mut guest);
        }
    }
}

#[test]
fn packets_out_of_order_reset_the_connection() {
    is_reset_by(|guest, socket| socket.say(guest, Operation::Request, 0));
    is_reset_by(|guest, socket| socket.say(guest, Operation::Response, 0));
    is_reset_by(|guest, socket| {
        let header = Header { operation: None, ..packet(socket.key, Operation::Request, 0) };
        guest.send(&header, &[]);
    });
    is_reset_by(|guest, socket| {
        socket.say(guest, Operation::Shutdown, SHUTDOWN_SEND);
        socket.send(guest, 1);
    });
}

#[test]
fn more_than_the_credit_resets_the_connection() {
    is_reset_by(|guest, socket| {
        // The caller reads nothing.
        while socket.credit() > 0 {
            socket.send(guest, BUFFER_SIZE as usize);
            socket.say(guest, Operation::CreditRequest, 0);
            while socket.take(guest) != Operation::CreditUpdate {}
        }
        socket.poll(guest);
        if socket.credit() == 0 {
            socket.send_unasked(guest, 1);
        }
    });
}

#[test]
fn lengths_that_are_not_there_reset_the_connection() {
    for length in [1, 4096, u32::MAX] {
        is_reset_by(|guest, socket| {
            let header = Header { length, ..packet(socket.key, Operation::ReadWrite, 0) };
            guest.send(&header, &[]);
        });
    }
}

#[test]
fn packets_of_no_connection_are_refused_and_others_passed_over() {
    let host = Host::new();
    let _accepted = host.listen(KEY.0);
    let mut guest = Guest::new(&host, 8);
    let request = packet(KEY, Operation::Request, 4096);
    // From another, to another: nobody to answer.
    guest.send(&Header { source_cid: CID + 1, ..request }, &[]);
    guest.send(&Header { destination_cid: 1, ..request }, &[]);
    guest.send(&Header { operation: Some(Operation::Reset), ..request }, &[]);
    // Another type of socket.
    guest.send(&Header { kind: 2, ..request }, &[]);
    assert_eq!(guest.expect(KEY, Operation::Reset).kind, 2);
    for operation in [Operation::Response, Operation::Shutdown, Operation::ReadWrite, Operation::CreditUpdate]
    {
        guest.send(&packet(KEY, operation, 0), &[]);
        guest.expect(KEY, Operation::Reset);
    }
    Socket::connect(&mut guest, KEY, 4096);
}

#[test]
fn an_answer_the_caller_did_not_wait_for_changes_nothing() {
    let host = Host::new();
    let mut guest = Guest::new(&host, 0);
    // No receive buffers: the REQUEST cannot have been sent when it is answered.
    let _stream = host.ports.connect(9).unwrap();
    let guess = (1 << 30, 9);
    guest.send(&packet(guess, Operation::Response, 4096), &[]);
    guest.offer(8);
    let first = guest.next().0;
    assert_eq!(first.operation, Some(Operation::Reset), "{first:?}");
}

#[test]
fn without_room_for_answers_packets_wait() {
    let host = Host::new();
    let mut guest = Guest::new(&host, 0);
    let count = 100;
    let address = guest.machine.allocate(64 * count as u64);
    for port in 0..count {
        let at = address + 64 * u64::from(port);
        guest.machine.store(at, &packet((1, port), Operation::ReadWrite, 0).encode());
        guest.transmit.offer(&[Buffer::Read(at, HEADER_SIZE as u32)]);
    }
    guest.transmit.notify();
    for _ in 0..MOST_REFUSALS {
        guest.transmit.wait_used();
    }
    assert_eq!(guest.transmit.take_used(), None);
    guest.offer(3);
    for port in 0..count {
        guest.expect((1, port), Operation::Reset);
    }
    for _ in MOST_REFUSALS..count as usize {
        guest.transmit.wait_used();
    }
}

#[test]
fn there_are_only_so_many_connections() {
    let most = 4 * MOST_CONNECTIONS as u64;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised =
        rustix::process::Rlimit { current: limit.maximum.map_or(Some(most), |m| Some(m.min(most))), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let host = Host::new();
    let accepted = host.listen(KEY.0);
    let mut guest = Guest::new(&host, 8);
    let mut streams = Vec::new();
    for port in 0..MOST_CONNECTIONS as u32 {
        Socket::connect(&mut guest, (KEY.0, port), 4096);
        streams.push(accepted.recv().unwrap());
    }
    let one_more = (KEY.0, 100_000);
    guest.send(&packet(one_more, Operation::Request, 4096), &[]);
    guest.expect(one_more, Operation::Reset);
    // One goes, and there is room for one.
    guest.send(&packet((KEY.0, 0), Operation::Reset, 0), &[]);
    Socket::connect(&mut guest, one_more, 4096);
}

#[test]
fn a_malformed_chain_stops_the_device_until_reset() {
    let host = Host::new();
    let accepted = host.listen(KEY.0);
    let outside = Descriptor { address: 1 << 40, length: 100, ..Default::default() };
    let looping = Descriptor { length: 64, flags: Descriptor::NEXT, next: 100, ..Default::default() };
    let writable = Descriptor { length: 64, flags: Descriptor::WRITE, ..Default::default() };
    let short = Descriptor { length: HEADER_SIZE as u32 - 1, ..Default::default() };
    let longest = Descriptor { length: u32::MAX, ..Default::default() };
    let indirect = Descriptor { length: 65, flags: Descriptor::INDIRECT, ..Default::default() };
    let no_room = Descriptor { length: HEADER_SIZE as u32, flags: Descriptor::WRITE, ..Default::default() };
    for (bad, receive) in [
        (outside, false),
        (looping, false),
        (writable, false),
        (short, false),
        (longest, false),
        (indirect, false),
        (short, true),
        (no_room, true),
        (outside, true),
    ] {
        let mut guest = Guest::new(&host, 4);
        Socket::connect(&mut guest, KEY, 4096);
        let mut stream = accepted.recv().unwrap();
        if receive {
            // The good buffers are used up first.
            let (index, free) = (100, guest.receive.free());
            assert!(free > 4);
            guest.receive.write_descriptor(index, bad);
            guest.receive.make_available(index);
            guest.receive.notify();
            for _ in 0..5 {
                let _ = host.ports.connect(9).unwrap();
            }
        } else {
            guest.transmit.write_descriptor(100, bad);
            guest.transmit.make_available(100);
            guest.transmit.notify();
        }
        guest.driver.wait_needs_reset();
        // Nobody is left waiting.
        assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
        guest.reset();
    }
    Socket::connect(&mut Guest::new(&host, 4), KEY, 4096);
}
