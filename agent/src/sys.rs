//! System calls without a safe wrapper in rustix or nix. The agent's only unsafe code.
#![expect(
    unsafe_code,
    reason = "signals and calls by number, random(4), ethtool, bpf(2), perf_event_open(2) and AsyncFd have no safe wrapper"
)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most bytes that [`credit_entropy`] takes.
pub(crate) const MAX_ENTROPY: usize = 4096;

/// `struct rand_pool_info` of linux/random.h with its buffer.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; MAX_ENTROPY],
}

nix::ioctl_write_ptr!(rnd_add_entropy, b'R', 0x03, [libc::c_int; 2]);
nix::ioctl_none!(rnd_reseed_crng, b'R', 0x07);

/// Adds `data` to the kernel's pool, credits 8 bits for each byte and reseeds the generator. `random` is an open
/// `/dev/random`; more than [`MAX_ENTROPY`] bytes are refused with EINVAL.
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

/// `struct ethtool_channels` of linux/ethtool.h.
#[repr(C)]
#[derive(Default)]
struct EthtoolChannels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;

/// Has a network interface use as many of its queue pairs as there are CPUs. `socket` is any socket; an interface
/// without such pairs is EOPNOTSUPP. Blocks while the device takes it up.
pub(crate) fn use_queue_pairs(socket: BorrowedFd<'_>, interface: &str, cpus: u32) -> std::io::Result<()> {
    let mut channels = EthtoolChannels { command: ETHTOOL_GCHANNELS, ..EthtoolChannels::default() };
    ethtool(socket, interface, &mut channels)?;
    let wanted = cpus.min(channels.max_combined);
    if wanted == 0 || wanted == channels.combined {
        return Ok(());
    }
    (channels.command, channels.combined) = (ETHTOOL_SCHANNELS, wanted);
    ethtool(socket, interface, &mut channels)
}

fn ethtool(socket: BorrowedFd<'_>, interface: &str, channels: &mut EthtoolChannels) -> std::io::Result<()> {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(std::io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    let data = std::ptr::from_mut(channels).cast();
    let mut request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
    // SAFETY: the descriptor is open for the call. The kernel reads the name, which ends within it, and reads and
    // writes the structure that both commands have, to which `data` points and which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Restores the default action of SIGPIPE, which Rust programs ignore and other programs expect.
pub(crate) fn restore_sigpipe() {
    // SAFETY: SIG_DFL is no function of ours, so nothing can run in the middle of other code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Has the kernel reap the children of this process by itself.
pub(crate) fn reap_by_kernel() {
    // SAFETY: SIG_IGN is no function of ours, so nothing can run in the middle of other code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Registers a descriptor with the tokio runtime, within which it must be called.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, stays so, and is always the same one as long as it is owned; `AsyncFd`
    // owns it from here on.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(Into::into)
}

/// Whether the kernel knows x32: system calls of 64-bit processes with bit 30 set in their numbers.
pub(crate) fn has_x32() -> bool {
    const X32: libc::c_long = 0x4000_0000;
    // SAFETY: getpid(2) takes no argument and changes nothing, and no other call has its number.
    unsafe { libc::syscall(X32 | libc::SYS_getpid) != -1 }
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

/// Of `enum bpf_cmd` (linux/bpf.h).
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
/// Of `enum bpf_prog_type`.
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
/// Of `enum bpf_attach_type`.
const BPF_CGROUP_DEVICE: u32 = 6;
/// Child cgroups may have programs of their own: all programs on the path have to allow an access.
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
/// Replaces another program of the same cgroup.
const BPF_F_REPLACE: u32 = 1 << 2;

/// How often loading is tried if signals interrupt the verifier.
const MOST_LOADS: u32 = 16;

/// The part of `union bpf_attr` that BPF_PROG_LOAD reads.
#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The part of `union bpf_attr` that BPF_PROG_ATTACH reads.
#[repr(C)]
struct ProgramAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// Loads a device program of a cgroup: 8 bytes for each instruction.
pub(crate) fn load_device_program(instructions: &[u64]) -> std::io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let load = ProgramLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(std::io::Error::other)?,
        insns: instructions.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"kiai_rules\0\0\0\0\0\0",
    };
    for _ in 0..MOST_LOADS {
        // SAFETY: the kernel reads `load` and what it points to: as many instructions as it says, and a string
        // that ends; all of it outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of_val(&load)) };
        if let Ok(fd @ 0..) = i32::try_from(fd) {
            // SAFETY: the kernel has just opened it for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        let error = std::io::Error::last_os_error();
        // A signal, SIGCHLD for instance, has interrupted the verifier, which starts from the beginning.
        if error.raw_os_error() != Some(libc::EAGAIN) {
            return Err(error);
        }
    }
    Err(std::io::Error::from_raw_os_error(libc::EAGAIN))
}

/// Attaches a device program to a cgroup, an open directory, in place of `replaced`.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> std::io::Result<()> {
    let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().unsigned_abs();
    let attach = ProgramAttach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program.as_fd()),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | replaced.map_or(0, |_| BPF_F_REPLACE),
        replace_bpf_fd: replaced.map_or(0, number),
    };
    // SAFETY: the kernel reads `attach`, which outlives the call; the descriptors in it are borrowed for it.
    match unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of_val(&attach)) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Of `enum perf_type_id` and `enum perf_sw_ids` (linux/perf_event.h).
const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_CONTEXT_SWITCHES: u64 = 3;
/// The pid argument is the descriptor of a cgroup.
const PERF_FLAG_PID_CGROUP: libc::c_ulong = 1 << 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// `struct perf_event_attr` in its first version (PERF_ATTR_SIZE_VER0), which every kernel accepts.
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    bp_addr: u64,
}

/// Flag of a [`PerfEventAttr`]: the event counts nothing until it is armed.
const DISABLED: u64 = 1;

// Arms an event for this number of overflows.
nix::ioctl_write_int_bad!(perf_event_refresh, nix::request_code_none!(b'$', 2));

/// An event that fires when a task of a cgroup or of its children stops running on a CPU, once each time it is armed.
#[derive(Debug)]
pub(crate) struct TaskSwitch {
    event: AsyncFd<OwnedFd>,
    armed: bool,
    _ring: Ring,
}

/// The mapping into which the kernel writes samples, overwriting old ones. It is never read, but without it the kernel
/// wakes no poll.
#[derive(Debug)]
struct Ring {
    start: *mut libc::c_void,
    length: usize,
}

// SAFETY: the address of a mapping that no other code reads.
unsafe impl Send for Ring {}
// SAFETY: see above.
unsafe impl Sync for Ring {}

impl TaskSwitch {
    /// Opens the event; `cgroup` is the cgroup's open directory. ENODEV if the CPU is not online. May block for some
    /// milliseconds. To be called within a tokio runtime.
    pub(crate) fn open(cgroup: &File, cpu: u32) -> std::io::Result<Self> {
        let attr = PerfEventAttr {
            kind: PERF_TYPE_SOFTWARE,
            size: u32::try_from(size_of::<PerfEventAttr>()).expect("64"),
            config: PERF_COUNT_SW_CONTEXT_SWITCHES,
            sample_period: 1,
            flags: DISABLED,
            wakeup_events: 1,
            ..PerfEventAttr::default()
        };
        let flags = PERF_FLAG_PID_CGROUP | PERF_FLAG_FD_CLOEXEC;
        let (cgroup, no_group) = (libc::c_long::from(cgroup.as_raw_fd()), libc::c_long::from(-1));
        let cpu = libc::c_long::from(cpu);
        // SAFETY: the kernel reads `attr`, as many bytes as it says, which outlives the call; the rest are numbers.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attr, cgroup, cpu, no_group, flags)
        };
        let fd = match i32::try_from(fd) {
            // SAFETY: the kernel has just opened it for us.
            Ok(fd @ 0..) => unsafe { OwnedFd::from_raw_fd(fd) },
            _ => return Err(std::io::Error::last_os_error()),
        };
        let ring = Ring::of(&fd)?;
        Ok(Self { event: watch(fd, Interest::READABLE)?, armed: false, _ring: ring })
    }

    /// Arms the event, unless it is armed.
    pub(crate) fn arm(&mut self) -> std::io::Result<()> {
        if !self.armed {
            // SAFETY: the descriptor is open for the call, and the argument is a number.
            unsafe { perf_event_refresh(self.event.as_raw_fd(), 1) }?;
            self.armed = true;
        }
        Ok(())
    }

    /// Waits until the event has fired. Cancelling loses nothing: the next call returns then.
    pub(crate) async fn happened(&mut self) -> std::io::Result<()> {
        self.event.readable().await?.clear_ready();
        self.armed = false;
        Ok(())
    }
}

impl Ring {
    /// Maps the kernel's page and one for samples. The mapping is read-only, so that the kernel overwrites old samples.
    fn of(event: &OwnedFd) -> std::io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let length = 2 * rustix::param::page_size();
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
        let start =
            unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, event, 0)? };
        Ok(Self { start, length })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no address in it is used elsewhere. It was mapped as a whole, so
        // this cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
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
