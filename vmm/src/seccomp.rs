//! What each thread of the machine may ask of the host's kernel: a list a kind of thread, installed on the thread
//! itself before it looks at anything of the guest's. Whoever takes such a thread over from inside the guest can
//! start no program or thread, reach no network, open no namespace and touch no other process; and what it can do is
//! what that thread is for: a vCPU's opens no file and moves no data, a disk's knows no sockets.
//!
//! Filters are inherited, so no thread with a list starts another: the machine's threads are started by whoever
//! builds it, attaches a device or asks for a vCPU. A call that is not on the list ends the process, and its number
//! is the last thing in the log.
#![expect(unsafe_code, reason = "handles the signal that a forbidden call raises, and blocks others")]

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use kiai_devices::platform::Role;
use seccompiler::BpfProgram;
use seccompiler::SeccompAction;

use lists::Call;

mod lists;
mod program;

/// Kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Runs guest code and does what the guest's registers ask for.
    Vcpu,
    /// Does the work of devices.
    Device(Role),
}

impl From<Role> for Kind {
    fn from(role: Role) -> Self {
        Self::Device(role)
    }
}

impl Kind {
    fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Vcpu).chain(Role::ALL.map(Self::Device))
    }

    /// What it may do.
    fn lists(self) -> [&'static [Call]; 2] {
        let own = match self {
            Self::Vcpu => return [lists::ANY, lists::VCPU],
            Self::Device(Role::Shared) => lists::SHARED,
            Self::Device(Role::Disk) => lists::DISK,
            Self::Device(Role::Network) => lists::NETWORK,
            Self::Device(Role::Sockets) => lists::SOCKETS,
            Self::Device(Role::Files) => return [lists::ANY, lists::FILES],
        };
        [lists::ANY, own]
    }

    /// What it may try and is refused.
    fn refused(self) -> &'static [libc::c_long] {
        if self == Self::Device(Role::Files) { &[] } else { lists::REFUSED }
    }

    /// A program that does `otherwise` with what is not on the list.
    fn filter(self, otherwise: &SeccompAction) -> io::Result<BpfProgram> {
        program::of(self.lists().into_iter().flatten(), self.refused(), otherwise)
    }
}

static FILTERS: OnceLock<BTreeMap<Kind, BpfProgram>> = OnceLock::new();

/// Gets everything ready. Once a process is enough.
pub(crate) fn prepare() -> io::Result<()> {
    if FILTERS.get().is_some() {
        return Ok(());
    }
    report_violations()?;
    let filters = Kind::all().map(|kind| Ok((kind, kind.filter(&SeccompAction::Trap)?)));
    let filters = filters.collect::<io::Result<_>>()?;
    FILTERS.get_or_init(|| filters);
    Ok(())
}

/// Confines the calling thread, for good.
pub(crate) fn confine(kind: Kind) -> io::Result<()> {
    let filter = FILTERS.get().and_then(|filters| filters.get(&kind));
    let filter = filter.ok_or_else(|| io::Error::other("the filters were not prepared"))?;
    leave_signals_to_others()?;
    seccompiler::apply_filter(filter).map_err(io::Error::other)
}

/// Signals for the process are for its other threads: what a handler of the program does is on no list. Those of a
/// fault come all the same, and so do real-time ones, which are sent to one thread.
fn leave_signals_to_others() -> io::Result<()> {
    const FAULTS: [libc::c_int; 7] =
        [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGSYS, libc::SIGTRAP];
    // SAFETY: any bits are a set of signals, and it is filled in before it is used; the numbers are valid.
    let error = unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut blocked);
        for signal in FAULTS.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
            libc::sigdelset(&raw mut blocked, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Installs the handler of SIGSYS.
fn report_violations() -> io::Result<()> {
    vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, report_and_abort)
        .map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

/// Says which call it was, and what its second argument was (of an ioctl, the request), by nothing but `write`, and ends
/// the process.
extern "C" fn report_and_abort(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    /// Offset of `si_syscall` in the siginfo of SIGSYS on a 64-bit machine (sigaction(2)).
    const SI_SYSCALL: usize = 24;
    let second = usize::try_from(libc::REG_RSI).expect("an index of registers");
    // SAFETY: the kernel hands over a siginfo, which is 128 bytes, and a context; any bits are an integer.
    let (mut call, mut argument) = unsafe {
        let call = info.cast::<u8>().add(SI_SYSCALL).cast::<libc::c_int>().read_unaligned();
        (call, (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[second])
    };
    let mut line =
        *b"kiai: system call 0000 (0x00000000), which its thread may not make: the process ends here\n";
    for digit in line[18..22].iter_mut().rev() {
        *digit = b"0123456789"[usize::try_from(call.rem_euclid(10)).unwrap_or(0)];
        call /= 10;
    }
    for digit in line[26..34].iter_mut().rev() {
        *digit = b"0123456789abcdef"[usize::try_from(argument & 0xf).unwrap_or(0)];
        argument >>= 4;
    }
    // SAFETY: the line is a buffer of its length; write and abort may be called from a signal handler.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::abort();
    }
}

#[cfg(test)]
mod tests;
