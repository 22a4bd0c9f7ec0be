//! What each thread of the machine may ask of the host's kernel: a list a kind of thread, installed on the thread
//! itself before it looks at anything of the guest's. Whoever takes such a thread over from inside the guest can
//! start no program, reach no network, open no namespace and touch no other process.
//!
//! A call that is not on the list ends the process, and its number is the last thing in the log. Filters are
//! inherited: a device's thread, started by the vCPU that makes the device live, has that vCPU's list and its
//! own. So the vCPUs' list holds all the others.
#![expect(unsafe_code, reason = "handles the signal that a forbidden call raises")]

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seccompiler::BpfProgram;
use seccompiler::SeccompAction;
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpArgLen::Qword;
use seccompiler::SeccompCmpOp::Eq;
use seccompiler::SeccompCmpOp::MaskedEq;
use seccompiler::SeccompCondition;
use seccompiler::SeccompFilter;
use seccompiler::SeccompRule;

mod lists;

/// Kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Runs guest code and does what the guest's registers ask for.
    Vcpu,
    /// Serves the queues of a device.
    Device,
    /// Serves the files of a shared directory.
    Files,
}

impl Kind {
    /// The kind of a device's thread, which devices give a name.
    fn of_device(thread: &str) -> Self {
        if thread == "virtio-fs" { Self::Files } else { Self::Device }
    }

    fn lists(self) -> &'static [&'static [libc::c_long]] {
        match self {
            Self::Vcpu => &[lists::ANY, lists::DEVICE, lists::FILES, lists::VCPU],
            Self::Device => &[lists::ANY, lists::DEVICE, lists::REFUSED],
            Self::Files => &[lists::ANY, lists::FILES],
        }
    }
}

/// The filters of this process, ready to be installed.
struct Filters {
    /// Has `clone3` fail as on a kernel that lacks it: its arguments cannot be looked at, and the C library then
    /// takes `clone`.
    no_clone3: BpfProgram,
    /// Has what a device's thread may try and not do fail: the stricter of two filters decides.
    refused: BpfProgram,
    vcpu: BpfProgram,
    device: BpfProgram,
    files: BpfProgram,
}

static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Gets everything ready, and has devices' threads confined from now on. Once a process is enough.
pub(crate) fn prepare() -> io::Result<()> {
    if FILTERS.get().is_some() {
        return Ok(());
    }
    report_violations()?;
    let filters = Filters {
        no_clone3: compile(
            BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        )?,
        refused: compile(
            lists::REFUSED.iter().map(|&call| (call, Vec::new())).collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EACCES.cast_unsigned()),
        )?,
        vcpu: allow(Kind::Vcpu)?,
        device: allow(Kind::Device)?,
        files: allow(Kind::Files)?,
    };
    FILTERS.get_or_init(|| filters);
    kiai_devices::virtio::worker::before_each(|name| confine(Kind::of_device(name)));
    Ok(())
}

/// Confines the calling thread, for good.
pub(crate) fn confine(kind: Kind) -> io::Result<()> {
    let filters = FILTERS.get().ok_or_else(|| io::Error::other("the filters were not prepared"))?;
    let programs = match kind {
        Kind::Vcpu => &[&filters.no_clone3, &filters.vcpu][..],
        Kind::Device => &[&filters.no_clone3, &filters.refused, &filters.device],
        Kind::Files => &[&filters.no_clone3, &filters.files],
    };
    for program in programs {
        seccompiler::apply_filter(program).map_err(io::Error::other)?;
    }
    Ok(())
}

fn allow(kind: Kind) -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<libc::c_long, Vec<SeccompRule>> =
        kind.lists().iter().flat_map(|list| list.iter()).map(|&call| (call, Vec::new())).collect();
    for (call, conditions) in conditions()? {
        if let Some(rules) = rules.get_mut(&call) {
            rules.push(SeccompRule::new(vec![conditions]).map_err(io::Error::other)?);
        }
    }
    compile(rules, SeccompAction::Trap, SeccompAction::Allow)
}

/// What an argument must be, for calls on the lists that are harmless only then. Several of one call are
/// alternatives.
fn conditions() -> io::Result<Vec<(libc::c_long, SeccompCondition)>> {
    let own = u64::from(std::process::id());
    let number = |value: libc::c_int| u64::from(value.cast_unsigned());
    let condition = |argument, length, operator, value| {
        SeccompCondition::new(argument, length, operator, value).map_err(io::Error::other)
    };
    let thread = number(libc::CLONE_THREAD);
    let executable = number(libc::PROT_EXEC);
    let mut all = vec![
        // Threads of this process, no other processes.
        (libc::SYS_clone, condition(0, Qword, MaskedEq(thread), thread)?),
        (libc::SYS_tgkill, condition(0, Dword, Eq, own)?),
        // No new code.
        (libc::SYS_mmap, condition(2, Dword, MaskedEq(executable), 0)?),
        (libc::SYS_mprotect, condition(2, Dword, MaskedEq(executable), 0)?),
        // The ends of a vsock stream, and nothing that leads out.
        (libc::SYS_socketpair, condition(0, Dword, Eq, number(libc::AF_UNIX))?),
        // A umask of one's own.
        (libc::SYS_unshare, condition(0, Dword, Eq, number(libc::CLONE_FS))?),
    ];
    for option in lists::PRCTL {
        all.push((libc::SYS_prctl, condition(0, Dword, Eq, number(*option))?));
    }
    Ok(all)
}

fn compile(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> io::Result<BpfProgram> {
    let here = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, then, here).map_err(io::Error::other)?;
    filter.try_into().map_err(|e: seccompiler::BackendError| io::Error::other(e))
}

/// Installs the handler of SIGSYS.
fn report_violations() -> io::Result<()> {
    vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, report_and_abort)
        .map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

/// Says which call it was, by nothing but `write`, and ends the process.
extern "C" fn report_and_abort(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    /// Offset of `si_syscall` in the siginfo of SIGSYS on a 64-bit machine (sigaction(2)).
    const SI_SYSCALL: usize = 24;
    // SAFETY: the kernel hands over a siginfo, which is 128 bytes; any bits are an integer.
    let mut call = unsafe { info.cast::<u8>().add(SI_SYSCALL).cast::<libc::c_int>().read_unaligned() };
    let mut line = *b"kiai: system call 0000, which its thread may not make: the process ends here\n";
    for digit in line[18..22].iter_mut().rev() {
        *digit = b"0123456789"[usize::try_from(call.rem_euclid(10)).unwrap_or(0)];
        call /= 10;
    }
    // SAFETY: the line is a buffer of its length; write and abort may be called from a signal handler.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::abort();
    }
}

#[cfg(test)]
mod tests;
