//! A driver in the specification's words against a real tap interface in a network namespace of its own.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use super::Net;
use super::NetError;
use super::feature;
use super::open_tap;
use crate::testing::Buffer;
use crate::testing::Descriptor;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Virtqueue;

const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const HEADER: usize = 12;
/// Ethernet, IPv4 without options, UDP.
const HEADERS: usize = 14 + 20 + 8;
/// An MTU that makes a frame longer than a receive buffer.
const JUMBO: u16 = 9000;
const RECEIVE_BUFFER: u32 = 1600;

/// The host's end: a tap called `tap0`, 10.0.0.1, that knows the guest as 10.0.0.2.
struct Host {
    socket: UdpSocket,
    /// A raw socket for TCP.
    tcp: OwnedFd,
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// A thread of its own enters a new namespace; what it opens there stays there.
fn network(queues: u16, mtu: u16) -> Option<(Host, Vec<OwnedFd>)> {
    if let Err(e) = std::fs::File::open("/dev/net/tun") {
        kiai_skip::skip(&format!("/dev/net/tun: {e}"));
        return None;
    }
    let open = move || {
        enter_network_namespace();
        let taps = open_tap("tap0", queues).unwrap();
        ip("link set tap0 address 02:00:00:00:00:01");
        ip(&format!("link set tap0 mtu {mtu} up"));
        ip("address add 10.0.0.1/24 dev tap0");
        ip("neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap0");
        let socket = UdpSocket::bind("10.0.0.1:7").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (family, kind) = (rustix::net::AddressFamily::INET, rustix::net::SocketType::RAW);
        let tcp = rustix::net::socket(family, kind, Some(rustix::net::ipproto::TCP)).unwrap();
        (Host { socket, tcp }, taps)
    };
    Some(std::thread::spawn(open).join().unwrap())
}

#[expect(unsafe_code, reason = "unshare")]
fn enter_network_namespace() {
    // SAFETY: changes the namespace of this thread, which ends with the set-up.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
}

/// Receive buffers on offer.
struct Receiver<'m> {
    machine: &'m Machine,
    queue: Virtqueue<'m>,
    /// By head.
    addresses: std::collections::HashMap<u16, u64>,
}

impl<'m> Receiver<'m> {
    fn new(machine: &'m Machine, queue: Virtqueue<'m>) -> Self {
        Self { machine, queue, addresses: Default::default() }
    }

    fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let address = self.machine.allocate(u64::from(RECEIVE_BUFFER));
            let head = self.queue.offer(&[Buffer::Write(address, RECEIVE_BUFFER)]);
            self.addresses.insert(head, address);
        }
        self.queue.notify();
    }

    fn buffer(&mut self) -> Vec<u8> {
        let used = self.queue.wait_used();
        let address = self.addresses.remove(&used.head).unwrap();
        self.machine.load(address, used.length as usize)
    }

    /// A frame of the host's IPv4, with its header; what else a new interface says is passed over.
    fn frame(&mut self) -> Vec<u8> {
        loop {
            let mut frame = self.buffer();
            let merged = u16::from_le_bytes([frame[10], frame[11]]);
            for _ in 1..merged {
                frame.extend(self.buffer());
            }
            if frame[HEADER + 12..HEADER + 14] == [8, 0] {
                return frame;
            }
        }
    }
}

/// An IPv4 packet of protocol `protocol` from the guest to the host, with all headers before it.
fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(HOST_MAC);
    frame.extend(MAC);
    frame.extend([8, 0]);
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut ip =
        vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
    let sum: u32 = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(ip);
    frame.extend(payload);
    frame
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let mut datagram = vec![0, 9, 0, 7, length[0], length[1], 0, 0];
    datagram.extend(payload);
    packet(17, &datagram)
}

fn send(machine: &Machine, queue: &mut Virtqueue<'_>, frame: &[u8]) {
    let address = machine.allocate(frame.len() as u64);
    machine.store(address, frame);
    // Cut where no layer ends.
    let (first, length) = (17, u32::try_from(frame.len()).unwrap());
    queue.request(&[Buffer::Read(address, first), Buffer::Read(address + u64::from(first), length - first)]);
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 % 251) as u8).collect()
}

const ALL: u64 = !feature::MQ;

#[test]
fn datagrams_go_both_ways() {
    let Some((host, taps)) = network(1, 1500) else { return };
    let machine = Machine::new();
    let slot = machine.plug(Net::new(taps, MAC, 1500).unwrap());
    let driver = Driver::negotiate(&machine, slot, ALL);
    let mut receive = Receiver::new(&machine, driver.queue(0, None));
    let mut transmit = driver.queue(1, None);
    driver.ready();
    assert_eq!((0..6).map(|i| driver.config(i, 1) as u8).collect::<Vec<_>>(), MAC);
    assert_eq!((driver.config(6, 2), driver.config(8, 2), driver.config(10, 2)), (1, 1, 1500));
    receive.offer(64);
    for round in 0..200 {
        let payload = pattern(1 + round * 7);
        host.socket.send_to(&payload, "10.0.0.2:9").unwrap();
        let frame = receive.frame();
        assert_eq!(frame[HEADER..HEADER + 12], [MAC, HOST_MAC].concat());
        assert_eq!(frame[HEADER + HEADERS..], payload);
        receive.offer(1);
        send(&machine, &mut transmit, &udp(&payload));
        let mut answer = [0; 2048];
        let (length, from) = host.socket.recv_from(&mut answer).unwrap();
        assert_eq!((&answer[..length], from.to_string().as_str()), (&payload[..], "10.0.0.2:9"));
    }
}

#[test]
fn a_long_frame_is_merged_from_several_buffers() {
    let Some((host, taps)) = network(1, JUMBO) else { return };
    let machine = Machine::new();
    let slot = machine.plug(Net::new(taps, MAC, JUMBO).unwrap());
    let driver = Driver::negotiate(&machine, slot, ALL);
    let mut receive = Receiver::new(&machine, driver.queue(0, None));
    let mut transmit = driver.queue(1, None);
    driver.ready();
    receive.offer(100);
    // Who takes a frame has set up the tap.
    send(&machine, &mut transmit, &udp(&[0]));
    for round in 0..100 {
        let payload = pattern(8000 + round);
        host.socket.send_to(&payload, "10.0.0.2:9").unwrap();
        let frame = receive.frame();
        assert_eq!(u16::from_le_bytes([frame[10], frame[11]]), 6);
        // Left for the guest to verify: the checksum was never computed.
        assert_eq!(frame[0] & 1, 1, "VIRTIO_NET_HDR_F_NEEDS_CSUM");
        assert_eq!(frame[HEADER + HEADERS..], payload);
        receive.offer(6);
    }
}

#[test]
fn a_frame_waits_for_buffers() {
    let Some((host, taps)) = network(1, JUMBO) else { return };
    let machine = Machine::new();
    let slot = machine.plug(Net::new(taps, MAC, JUMBO).unwrap());
    let driver = Driver::negotiate(&machine, slot, ALL & !(feature::GUEST_TSO4 | feature::GUEST_TSO6));
    let mut receive = Receiver::new(&machine, driver.queue(0, None));
    let _transmit = driver.queue(1, None);
    driver.ready();
    let payloads = [pattern(5000), pattern(8900), pattern(3)];
    for payload in &payloads {
        host.socket.send_to(payload, "10.0.0.2:9").unwrap();
    }
    // One buffer at a time: short frames of the interface's own may take the first ones.
    let mut got = Vec::new();
    for _ in 0..40 {
        receive.offer(1);
    }
    while got.len() < payloads.len() {
        got.push(receive.frame()[HEADER + HEADERS..].to_vec());
    }
    assert_eq!(got, payloads);
}

#[test]
fn without_merging_a_frame_too_long_is_lost_and_the_next_arrives() {
    let Some((host, taps)) = network(1, JUMBO) else { return };
    let machine = Machine::new();
    let slot = machine.plug(Net::new(taps, MAC, JUMBO).unwrap());
    let driver = Driver::negotiate(&machine, slot, feature::MAC);
    let mut receive = Receiver::new(&machine, driver.queue(0, None));
    let _transmit = driver.queue(1, None);
    driver.ready();
    receive.offer(20);
    host.socket.send_to(&pattern(5000), "10.0.0.2:9").unwrap();
    host.socket.send_to(b"short", "10.0.0.2:9").unwrap();
    let frame = receive.frame();
    assert_eq!(frame[0] & 1, 0, "no checksum is left to a driver that cannot");
    assert_eq!(&frame[HEADER + HEADERS..], b"short");
}

#[test]
fn a_large_segment_reaches_the_host_whole() {
    let Some((host, taps)) = network(1, 1500) else { return };
    let machine = Machine::new();
    let slot = machine.plug(Net::new(taps, MAC, 1500).unwrap());
    let driver = Driver::negotiate(&machine, slot, ALL);
    let mut transmit = driver.queue(1, None);
    let _receive = driver.queue(0, None);
    driver.ready();
    // UDP takes no part in segmentation: the host's stack counts what TCP brings in.
    let mut segment = vec![0, 9, 0, 7];
    segment.extend([0; 8]);
    segment.extend([0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(pattern(30_000));
    let mut frame = packet(6, &segment);
    // struct virtio_net_hdr: NEEDS_CSUM, GSO_TCPV4, hdr_len, gso_size, csum_start, csum_offset.
    let fields = [u16::from_le_bytes([1, 1]), 54, 1448, 34, 16];
    fields.iter().enumerate().for_each(|(i, f)| frame[2 * i..2 * i + 2].copy_from_slice(&f.to_le_bytes()));
    send(&machine, &mut transmit, &frame);
    let mut total = 0;
    while total < 30_000 {
        let mut packet = vec![0; 65536];
        let length = rustix::io::read(&host.tcp, &mut packet).unwrap();
        let payload = &packet[40..length];
        assert_eq!(payload, &pattern(30_000)[total..total + payload.len()]);
        total += payload.len();
    }
    assert_eq!(total, 30_000);
}

#[test]
fn pairs_are_used_as_the_driver_asks() {
    let Some((host, taps)) = network(3, 1500) else { return };
    let machine = Machine::new();
    let slot = machine.plug(Net::new(taps, MAC, 1500).unwrap());
    let driver = Driver::negotiate(&machine, slot, u64::MAX);
    assert_eq!(driver.config(8, 2), 3);
    // The driver leaves the third pair alone.
    let mut receivers: Vec<_> = [0, 2].map(|i| Receiver::new(&machine, driver.queue(i, None))).into();
    let mut transmits: Vec<_> = [1, 3].map(|i| driver.queue(i, None)).into();
    let mut control = driver.queue(6, None);
    driver.ready();
    let mut command = |bytes: &[u8]| {
        let address = machine.allocate(64);
        machine.store(address, bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        let written = control.request(&[Buffer::Read(address, length), Buffer::Write(address + 32, 1)]);
        assert_eq!(written, 1);
        machine.load(address + 32, 1)[0]
    };
    receivers.iter_mut().for_each(|r| r.offer(200));
    for refused in [&[4, 0, 0, 0][..], &[4, 0, 3, 0], &[4, 0, 1], &[4, 1, 1, 0], &[0, 0, 1, 0], &[]] {
        if !refused.is_empty() {
            assert_eq!(command(refused), 1, "{refused:?}");
        }
    }
    for pairs in [1u8, 2, 1, 2] {
        assert_eq!(command(&[4, 0, pairs, 0]), 0);
        for transmit in &mut transmits[..usize::from(pairs)] {
            send(&machine, transmit, &udp(b"from each queue"));
            assert_eq!(host.socket.recv(&mut [0; 64]).unwrap(), 15);
        }
    }
    // Flows spread over the queues in use.
    for port in 1000..1050 {
        host.socket.send_to(b"a flow", ("10.0.0.2", port)).unwrap();
    }
    for receiver in &mut receivers {
        assert_eq!(&receiver.frame()[HEADER + HEADERS..], b"a flow");
    }
}

#[test]
fn what_breaks_the_rules_stops_the_device_until_reset() {
    let Some((host, taps)) = network(1, 1500) else { return };
    let machine = Machine::new();
    let slot = machine.plug(Net::new(taps, MAC, 1500).unwrap());
    let outside = Descriptor { address: 1 << 40, length: 100, ..Default::default() };
    let looping = Descriptor { length: 64, flags: Descriptor::NEXT, ..Default::default() };
    let writable = Descriptor { length: 64, flags: Descriptor::WRITE, ..Default::default() };
    let short = Descriptor { length: 11, ..Default::default() };
    let longest = Descriptor { length: u32::MAX, ..Default::default() };
    for bad in [outside, looping, writable, short, longest] {
        let driver = Driver::negotiate(&machine, slot, ALL);
        let _receive = driver.queue(0, None);
        let mut transmit = driver.queue(1, None);
        driver.ready();
        transmit.write_descriptor(0, bad);
        transmit.make_available(0);
        transmit.notify();
        driver.wait_needs_reset();
        driver.reset();
    }
    // A receive buffer the device may not write; an index that jumps.
    for (bad, jump) in [(short, 0), (writable, 1000)] {
        let driver = Driver::negotiate(&machine, slot, ALL);
        let mut receive = driver.queue(0, None);
        let _transmit = driver.queue(1, None);
        driver.ready();
        receive.write_descriptor(0, bad);
        receive.make_available(0);
        if jump != 0 {
            receive.set_available_index(jump);
        }
        receive.notify();
        host.socket.send_to(b"to find the buffer", "10.0.0.2:9").unwrap();
        driver.wait_needs_reset();
        driver.reset();
    }
    let driver = Driver::negotiate(&machine, slot, ALL);
    let _receive = driver.queue(0, None);
    let mut transmit = driver.queue(1, None);
    driver.ready();
    // A frame no network has is lost, and only that.
    let address = machine.allocate(100_000);
    assert_eq!(transmit.request(&[Buffer::Read(address, 100_000)]), 0);
    send(&machine, &mut transmit, &udp(b"alive"));
    assert_eq!(host.socket.recv(&mut [0; 64]).unwrap(), 5);
}

#[test]
fn a_device_needs_a_tap() {
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(matches!(Net::new(vec![], MAC, 1500), Err(NetError::Queues(0))));
    assert!(matches!(Net::new(vec![null()], [1, 0, 0, 0, 0, 0], 1500), Err(NetError::Mac(_))));
    assert!(matches!(Net::new(vec![null()], MAC, 67), Err(NetError::Mtu(67))));
    assert!(matches!(Net::new(vec![null()], MAC, 1500), Err(NetError::Tap { index: 0, .. })));
    for name in ["", "sixteen-letters-", "a/b", "tap%d", "a b", "a:1", "ä"] {
        assert_eq!(open_tap(name, 1).unwrap_err().kind(), std::io::ErrorKind::InvalidInput, "{name}");
    }
}
