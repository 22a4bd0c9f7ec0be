#![expect(unsafe_code, reason = "signals a thread and writes the run structure it shares with the kernel")]
//! Taking a vCPU out of the guest: a signal interrupts KVM_RUN, the `immediate_exit` flag closes the gap
//! before it (KVM api.rst 5, `kvm_run`).

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::SIGRTMIN;
use vmm_sys_util::signal::register_signal_handler;

use super::mailbox::Kick;

/// Offset from SIGRTMIN of the signal that only interrupts.
const SIGNAL: libc::c_int = 3;

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the handler once a process. A real-time signal nobody else uses.
pub(crate) fn install_signal_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| register_signal_handler(SIGRTMIN() + SIGNAL, ignore).map_err(|e| e.errno()))
        .map_err(io::Error::from_raw_os_error)
}

/// Kicks one vCPU thread. Made on that thread; it must be dropped before the thread ends and before its
/// `VcpuFd` is closed. The vCPU's mailbox keeps it, and gives it up under its lock.
pub(crate) struct Kicker {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointee is an atomic in a page shared with the kernel, valid as long as the `VcpuFd` (see the
// contract above); pthread_t may be used from any thread.
unsafe impl Send for Kicker {}

impl Kicker {
    /// For the calling thread, which runs `vcpu`.
    pub(super) fn of_this_thread(vcpu: &mut VcpuFd) -> Self {
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        let flag = &raw mut vcpu.get_kvm_run().immediate_exit;
        Self { thread, immediate_exit: flag.cast::<AtomicU8>().cast_const() }
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        // SAFETY: by the contract of the type the run structure is mapped and the thread has not ended; an
        // AtomicU8 has the layout of the u8 it stands for.
        unsafe {
            (*self.immediate_exit).store(1, Ordering::SeqCst);
            libc::pthread_kill(self.thread, SIGRTMIN() + SIGNAL);
        }
    }
}
