//! The few system calls that neither rustix nor nix offers safely. The agent's only unsafe code.
#![expect(unsafe_code, reason = "signals by number, random(4) and AsyncFd have no safe wrapper")]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most bytes [`credit_entropy`] takes at once.
pub(crate) const MAX_ENTROPY: usize = 4096;

/// `struct rand_pool_info` of linux/random.h with its buffer in place.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; MAX_ENTROPY],
}

nix::ioctl_write_ptr!(rnd_add_entropy, b'R', 0x03, [libc::c_int; 2]);
nix::ioctl_none!(rnd_reseed_crng, b'R', 0x07);

/// Mixes `data` into the kernel's pool, credits 8 bits for each byte and makes the generator take it up at
/// once. `random` is an open `/dev/random`; `data` beyond [`MAX_ENTROPY`] bytes is refused with EINVAL.
pub(crate) fn credit_entropy(random: &File, data: &[u8]) -> std::io::Result<()> {
    if data.len() > MAX_ENTROPY {
        return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
    }
    let length = libc::c_int::try_from(data.len()).expect("at most 4096");
    let mut info = RandPoolInfo { entropy_count: length * 8, buf_size: length, buf: [0; MAX_ENTROPY] };
    info.buf[..data.len()].copy_from_slice(data);
    let pointer = (&raw const info).cast::<[libc::c_int; 2]>();
    // SAFETY: the descriptor is open for the call; the kernel reads the two counters and `buf_size` bytes
    // behind them, all of which lie within `info`, which outlives the call.
    unsafe { rnd_add_entropy(random.as_raw_fd(), pointer) }?;
    // SAFETY: the descriptor is open for the call and the request takes no argument.
    unsafe { rnd_reseed_crng(random.as_raw_fd()) }?;
    Ok(())
}

/// Gives SIGPIPE its default action back, which every Rust program ignores and every other expects.
pub(crate) fn restore_sigpipe() {
    // SAFETY: SIG_DFL is no function of ours, so nothing can run in the middle of other code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Has the runtime watch a descriptor. Within a tokio runtime only.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, stays so, and is always the same one as long as it is owned; `AsyncFd`
    // owns it from here on.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(Into::into)
}

/// kill(2) with a signal's number, which may be a real-time one. `pid` must be positive: one process.
pub(crate) fn kill(pid: i32, signal: u32) -> std::io::Result<()> {
    let signal = i32::try_from(signal).map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))?;
    if pid <= 0 || signal == 0 {
        return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: kill takes two integers and touches no memory of this process.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn more_entropy_than_the_buffer_holds_is_refused() {
        let random = std::fs::File::open("/dev/random").unwrap();
        assert!(super::credit_entropy(&random, &[0; super::MAX_ENTROPY + 1]).is_err());
    }
}
