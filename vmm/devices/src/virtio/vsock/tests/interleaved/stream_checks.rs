//! Streams between a guest and callers, whoever is slow, and whoever goes first.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;

use kiai_interleave::check;
use kiai_interleave::shuttle::rand::Rng;
use kiai_interleave::shuttle::rand::thread_rng;
use kiai_interleave::shuttle::sync::mpsc;

use super::guest::Ended;
use super::guest::Guest;
use super::guest::byte;
use super::os::Mutex;
use super::os::UnixStream;
use super::os::thread;
use super::os::wait_for;
use super::ports::VsockPorts;
use super::world::Device;
use super::world::Queues;
use crate::io_thread::tests::interleaved::Running;

/// Bytes in each direction: several times what each buffer takes, and more packets than fit into a socket.
const LENGTH: u32 = 10;
const PORT: u32 = 7;

/// Sends so much of a stream a byte or two at a time; false if nobody takes it any more.
fn write_all(stream: &UnixStream, length: u32) -> bool {
    let mut position = 0;
    while position < length {
        let piece: Vec<u8> = (position..length.min(position + 2)).map(byte).collect();
        let flags = rustix::net::SendFlags::NOSIGNAL;
        match wait_for(|| match rustix::net::send(stream, &piece, flags) {
            Ok(count) => Ok(Some(count as u32)),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(None),
            Err(error) => Err(error.into()),
        }) {
            Some(count) => position += count,
            None => return false,
        }
    }
    true
}

/// How many bytes came before the end, which is that of the stream or a reset.
fn read_all(stream: &UnixStream) -> (u32, io::Result<()>) {
    let mut position = 0;
    loop {
        let mut piece = [0; 3];
        let read = wait_for(|| match rustix::io::read(stream.as_fd(), &mut piece) {
            Err(rustix::io::Errno::CONNRESET) => Ok(Err(rustix::io::Errno::CONNRESET)),
            other => Ok(Ok(other?)),
        });
        match read {
            Ok(0) => return (position, Ok(())),
            Ok(count) => {
                for &got in &piece[..count] {
                    assert_eq!(got, byte(position));
                    position += 1;
                }
            }
            Err(error) => return (position, Err(error.into())),
        }
    }
}

/// A device, a guest on its own thread that sends so many bytes, and the caller's end of their connection, which
/// either of them asks for.
fn connected(length: u32) -> (Running<Device>, Arc<VsockPorts>, thread::JoinHandle<Ended>, UnixStream) {
    let (ports, queues) = (VsockPorts::new().unwrap(), Queues::new());
    let device = Device::begin(&ports, &queues);
    if thread_rng().gen_bool(0.5) {
        let (accepted, streams) = mpsc::channel();
        // Called on the device's thread alone, but the type does not say so.
        let accepted = Mutex::new(accepted);
        ports.listen(PORT, Box::new(move |stream| accepted.lock().send(stream).unwrap())).unwrap();
        let guest = thread::spawn(move || Guest::connect(&queues, PORT, length).run());
        let stream = streams.recv().unwrap();
        (device, ports, guest, stream)
    } else {
        let stream = ports.connect(PORT).unwrap();
        let guest = thread::spawn(move || Guest::accept(&queues, length).run());
        (device, ports, guest, stream)
    }
}

#[test]
fn both_directions_arrive_whole_and_their_ends_are_seen() {
    check(|| {
        let (device, _ports, guest, stream) = connected(LENGTH);
        let stream = Arc::new(stream);
        let reading = stream.clone();
        let reader = thread::spawn(move || read_all(&reading));
        // With nothing to send that says it on the way, the guest has to be told of its credit.
        let length = thread_rng().gen_range(0..2) * LENGTH;
        assert!(write_all(&stream, length));
        stream.shutdown(Shutdown::Write).unwrap();
        let (count, end) = reader.join().unwrap();
        assert!(count == LENGTH && end.is_ok(), "{count} bytes, then {end:?}");
        let ended = guest.join().unwrap();
        assert_eq!((ended.received, ended.sent), (length, LENGTH));
        let device = device.stop().unwrap();
        assert_eq!((device.connections.count(), device.connections.waiting()), (0, 0));
    });
}

#[test]
fn a_caller_that_goes_ends_the_connection_and_what_it_wrote_arrives() {
    check(|| {
        // What of the guest's is unread when a caller goes makes the kernel forget what the caller wrote.
        let length = thread_rng().gen_range(0..2) * LENGTH;
        let (device, _ports, guest, stream) = connected(length);
        assert!(write_all(&stream, LENGTH));
        drop(stream);
        let ended = guest.join().unwrap();
        assert!(ended.received == LENGTH || length > 0, "{} bytes", ended.received);
        let device = device.stop().unwrap();
        assert_eq!((device.connections.count(), device.connections.waiting()), (0, 0));
    });
}

#[test]
fn a_device_that_is_reset_lets_go_of_its_callers() {
    check(|| {
        let (ports, queues) = (VsockPorts::new().unwrap(), Queues::new());
        let device = Device::begin(&ports, &queues);
        let stream = Arc::new(ports.connect(PORT).unwrap());
        let reading = stream.clone();
        let reader = thread::spawn(move || read_all(&reading));
        let writer = thread::spawn(move || write_all(&stream, LENGTH));
        // Whatever it has done by then, nobody waits for it any longer.
        drop(device.stop().unwrap());
        drop(reader.join().unwrap());
        writer.join().unwrap();
    });
}
