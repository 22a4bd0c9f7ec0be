//! The host's end: a tap interface, one file descriptor a queue (Documentation/networking/tuntap.rst).
//!
//! Opening one ([`open_tap`]) is for the runtime, in the network namespace it wants; the device is handed open
//! descriptors and asks of them only what the driver agreed to.

#![expect(unsafe_code, reason = "the tun driver's ioctls")]

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::fs::OFlags;

use super::HEADER_SIZE;

/// What a tap must be for us: Ethernet frames, with nothing but a virtio header before them.
const NEEDED: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Opens the tap interface `name` in the calling thread's network namespace, creating it if there is none:
/// `queues` descriptors, non-blocking, closed on exec. The interface goes when the last one is closed, unless
/// it was there before. It comes up without address and down.
///
/// Errors: a name the kernel would not take as it is, no CAP_NET_ADMIN, an interface of that name that is
/// something else or has other queues.
pub fn open_tap(name: &str, queues: u16) -> io::Result<Vec<OwnedFd>> {
    let bytes = name.as_bytes();
    // `%` would make the kernel choose a number.
    let plain = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'/' | b'%' | b':');
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || !bytes.iter().all(plain) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("interface name {name:?}")));
    }
    let multi_queue = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut request = interface_request(NEEDED | multi_queue);
    for (to, &from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let open = |_| {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        // SAFETY: TUNSETIFF reads and writes an ifreq.
        result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        Ok(tap)
    };
    (0..queues).map(open).collect()
}

/// One queue of a tap.
pub(super) struct Tap(OwnedFd);

impl Tap {
    /// Takes a descriptor after looking what it is.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut request = interface_request(0);
        // SAFETY: TUNGETIFF writes an ifreq; anything but a tun descriptor refuses it.
        result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: TUNGETIFF fills in the flags, and any bits are valid ones.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & NEEDED != NEEDED {
            let what = format!("flags {flags:#x}: IFF_TAP, IFF_NO_PI and IFF_VNET_HDR are needed");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        // Whoever opened it may not have.
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(fd))
    }

    /// Sets what a frame begins with and which frames may be left for the guest to finish (`TUN_F_*`). Holds
    /// for all queues of the interface.
    pub(super) fn configure(&self, offloads: libc::c_uint) -> io::Result<()> {
        let header = libc::c_int::try_from(HEADER_SIZE).expect("twelve");
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        result(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })?;
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        result(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
    }

    /// Lets the interface put frames into this queue, or not any more. An error if it is so already.
    pub(super) fn attach(&self, attach: bool) -> io::Result<()> {
        let flag = if attach { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        let request = interface_request(flag);
        // SAFETY: TUNSETQUEUE reads an ifreq.
        result(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn interface_request(flags: libc::c_int) -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq: no name, no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("flags of 15 bits");
    request
}

fn result(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
