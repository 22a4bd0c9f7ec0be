//! The network interface, on a tap of a network namespace of its own.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::OnceLock;

use super::Plugged;
use super::Subject;
use crate::testing::Buffer;
use crate::testing::Descriptor;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::virtio::net::Net;
use crate::virtio::net::open_tap;

/// The network interface with one queue pair.
pub const NET: Subject = Subject { name: "net", plug, works, refusing: &[(0, Descriptor::WRITE), (1, 0)] };

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Bytes of a virtio header, and of an ARP packet in Ethernet.
const HEADER: usize = 12;
const ARP: usize = 42;

/// The tap, shared by every device of this process, one after the other: interfaces are slow to come and go.
fn tap() -> OwnedFd {
    static TAP: OnceLock<OwnedFd> = OnceLock::new();
    let open = || {
        enter_network_namespace();
        let tap = open_tap("tap0", 1).unwrap().remove(0);
        for arguments in
            [&["address", "add", "10.0.0.1/24", "dev", "tap0"][..], &["link", "set", "tap0", "up"]]
        {
            assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
        }
        tap
    };
    // On a thread that stays in the namespace and ends with the set-up.
    TAP.get_or_init(|| std::thread::spawn(open).join().unwrap()).try_clone().unwrap()
}

#[expect(unsafe_code, reason = "unshare")]
fn enter_network_namespace() {
    // SAFETY: changes the namespace of this thread only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
}

fn plug(machine: &Machine) -> Plugged {
    Plugged { slot: machine.plug(Net::new(vec![tap()], MAC, 1500).unwrap()), host: Box::new(()) }
}

/// Asks who has the host's address, and hears of it.
fn works(machine: &Machine, slot: u8) {
    let driver = Driver::negotiate(machine, slot, 0);
    let mut queues = driver.queues();
    driver.ready();
    let frame = HEADER + ARP;
    let (incoming, outgoing) = (machine.allocate(64 << 11), machine.allocate(frame as u64));
    for n in 0..64 {
        queues[0].offer(&[Buffer::Write(incoming + (n << 11), 1 << 11)]);
    }
    queues[0].notify();
    let ask = [
        &[0; HEADER][..],
        &[0xff; 6],
        &MAC,
        // ARP, Ethernet, IPv4, a request.
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &MAC,
        &[10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1],
    ]
    .concat();
    machine.store(outgoing, &ask);
    queues[1].request(&[Buffer::Read(outgoing, u32::try_from(frame).unwrap())]);
    // What was under way when the device was reset, and what a new interface says of itself, comes first.
    for n in 0..64 {
        queues[0].wait_used();
        let heard = machine.load(incoming + (n << 11), frame);
        if heard[HEADER + 12..HEADER + 14] == [8, 6] && heard[HEADER + 21] == 2 {
            driver.reset();
            return;
        }
    }
    panic!("no answer from the host");
}
