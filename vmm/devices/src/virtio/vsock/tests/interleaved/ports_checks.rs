//! Who asks for connections while the device looks, and while it goes.

use std::sync::Arc;

use kiai_interleave::check;

use super::os::EventFd;
use super::os::UnixStream;
use super::os::thread;
use super::os::wait_for;
use super::ports::VsockPorts;
use super::world::CID;
use super::world::Device;
use super::world::Queues;

/// Waits for the stream's end.
fn ends(stream: &UnixStream) {
    let read = wait_for(|| Ok(rustix::io::read(stream, &mut [0; 1])?));
    assert_eq!(read, 0);
}

#[test]
fn every_connection_asked_for_is_begun_or_refused_and_ends_with_the_device() {
    check(|| {
        let (ports, queues) = (VsockPorts::new().unwrap(), Queues::new());
        let device = Device::begin(&ports, &queues);
        let asking = (0..2).map(|_| {
            let ports = ports.clone();
            thread::spawn(move || ports.connect(7))
        });
        let asking: Vec<_> = asking.collect();
        drop(device.stop().unwrap());
        for asked in asking {
            if let Ok(stream) = asked.join().unwrap() {
                ends(&stream);
            }
        }
        assert!(ports.connect(7).is_err(), "{CID} is gone");
    });
}

#[test]
fn a_device_that_sleeps_hears_of_every_connection_asked_for() {
    check(|| {
        let (ports, queues) = (VsockPorts::new().unwrap(), Queues::new());
        let _device = Device::begin(&ports, &queues);
        let asking = (0..2).map(|_| {
            let ports = ports.clone();
            thread::spawn(move || ports.connect(7).unwrap())
        });
        let asking: Vec<_> = asking.collect();
        for _ in 0..2 {
            let (header, _) = queues.receive();
            assert_eq!(header.destination_port, 7);
        }
        asking.into_iter().for_each(|asked| drop(asked.join().unwrap()));
    });
}

#[test]
fn a_port_has_one_listener_at_a_time() {
    check(|| {
        let ports = VsockPorts::new().unwrap();
        let calls = Arc::new(EventFd::new(0).unwrap());
        let listen = |ports: &VsockPorts| {
            let calls = calls.clone();
            ports.listen(1, Box::new(move |_| calls.write(1).unwrap())).is_ok()
        };
        let other = ports.clone();
        let calls_of_other = calls.clone();
        let second = thread::spawn(move || {
            other.listen(1, Box::new(move |_| calls_of_other.write(1).unwrap())).is_ok()
        });
        let first = listen(&ports);
        assert!(first != second.join().unwrap(), "one of them has it");
        ports.unlisten(1);
        assert!(ports.listener(1).is_none() && listen(&ports));
    });
}
