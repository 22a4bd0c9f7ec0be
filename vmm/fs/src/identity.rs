//! What makes the serving thread fit to act for the guest's users, without the rest of the process noticing.
//!
//! FUSE requests carry the user and group of the guest's process. Files it makes are to be theirs, so the
//! server changes this thread's effective ids around each creation (raw system calls: libc's wrappers would
//! change every thread). Whether that user *may* is the guest kernel's decision, taken before the request was
//! sent and with knowledge the host lacks (supplementary groups, capabilities), so the host must not take it a
//! second time: the thread keeps its capabilities across the change.
#![expect(unsafe_code, reason = "unshare(2) is declared unsafe")]

use std::io;

use kiai_devices::log_limit::LogLimit;
use rustix::fs::Mode;
use rustix::thread::CapabilitiesSecureBits;
use rustix::thread::UnshareFlags;

/// Prepares the calling thread, for as long as it lives. Call it on the serving thread before the first request; once
/// more does no harm.
pub(crate) fn prepare_thread() -> io::Result<()> {
    // The umask belongs to what CLONE_FS shares, and the server changes it.
    // SAFETY: only CLONE_FS is unshared; no code relies on threads sharing the umask or working directory.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    let bits = rustix::thread::capabilities_secure_bits()?;
    let kept = bits | CapabilitiesSecureBits::NO_SETUID_FIXUP;
    // Each time a driver starts the device.
    static REPORTS: LogLimit = LogLimit::new();
    if let Err(error) = rustix::thread::set_capabilities_secure_bits(kept)
        && REPORTS.allows()
    {
        tracing::warn!(
            %error,
            "virtio-fs: creating files for users other than root needs the host's permission as well"
        );
    }
    Ok(())
}

/// Runs `create` under the umask of the guest's process, so that the host's kernel combines it with a default
/// ACL of the directory the way POSIX has it: the ACL wins.
pub(crate) fn with_umask<T>(umask: u32, create: impl FnOnce() -> T) -> T {
    let previous = rustix::process::umask(Mode::from_bits_truncate(umask & 0o777));
    let result = create();
    rustix::process::umask(previous);
    result
}
