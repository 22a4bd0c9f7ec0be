#![expect(unsafe_code, reason = "the TUN driver is configured by ioctl")]
//! Tap devices (Linux `Documentation/networking/tuntap.rst`), with one open file for each queue.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

/// Bytes before each packet: `struct virtio_net_hdr_v1` (virtio 1.2 §5.1.6).
const VNET_HEADER_SIZE: libc::c_int = 12;

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_ptr_bad!(tun_set_header_size, libc::TUNSETVNETHDRSZ, libc::c_int);

/// Makes a tap in the calling thread's network namespace; its name must be new. The tap is removed when its last queue
/// is closed.
pub(super) fn create(name: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // Without the flag the first queue could be added to an existing tap.
    let new = |nth| if nth == 0 { libc::IFF_TUN_EXCL } else { 0 };
    (0..queues).map(|nth| queue(name, flags | new(nth))).collect()
}

fn queue(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid `ifreq`: a name of NULs and a union of plain integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays NUL.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // A field of 16 bits, of which TUN_EXCL is the last.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads one `ifreq` that lives across the call.
    unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }?;
    let header_size = VNET_HEADER_SIZE;
    // SAFETY: the descriptor is open, and the kernel reads one int that lives across the call.
    unsafe { tun_set_header_size(file.as_raw_fd(), &raw const header_size) }?;
    Ok(file.into())
}
