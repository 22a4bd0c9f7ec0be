//! Named network namespaces, made the way ip-netns(8) makes them, so that its commands show them.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::mount::MountPropagationFlags;
use rustix::mount::UnmountFlags;

/// The directory in which ip-netns(8) keeps namespaces.
const DIRECTORY: &str = "/run/netns";

/// A network namespace cannot be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} network namespace {}", path.display())]
pub struct NamespaceError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NamespaceError {
    let path = path.to_owned();
    move |source| NamespaceError { action, path, source }
}

/// The path of a container's namespace.
pub fn path(id: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("kiai-{id}"))
}

/// Makes a namespace with its loopback interface up, and binds it to `path`.
///
/// # Errors
/// The error names the step that the kernel refused. A file may be left at `path`: [`remove`] removes it.
pub fn create(path: &Path) -> Result<(), NamespaceError> {
    share_directory().map_err(failed("prepare the directory of", path))?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
        .map_err(failed("create the file of", path))?;
    // Entering a namespace changes the thread permanently, so a new thread does it and ends.
    let mount_at = path.to_owned();
    let result = std::thread::spawn(move || -> io::Result<()> {
        unshare_network()?;
        raise_loopback()?;
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &mount_at)?;
        Ok(())
    })
    .join();
    match result {
        Ok(done) => done.map_err(failed("create", path)),
        Err(_) => Err(failed("create", path)(io::Error::other("the thread that makes it panicked"))),
    }
}

/// Removes a namespace. A missing or incomplete namespace is no error.
///
/// # Errors
/// The kernel refused to unmount or remove the namespace's file.
pub fn remove(path: &Path) -> Result<(), NamespaceError> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // The file does not exist, or nothing was mounted on it.
        Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {}
        Err(errno) => return Err(failed("unmount", path)(errno.into())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove the file of", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes the directory a shared mount. A shim has its own mount namespace with a copy of every bind mount that existed
/// at its start. Only in a shared directory these copies are unmounted with the original, and the network namespace
/// can end.
fn share_directory() -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let propagation = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    if rustix::mount::mount_change(DIRECTORY, propagation) == Err(rustix::io::Errno::INVAL) {
        rustix::mount::mount_bind_recursive(DIRECTORY, DIRECTORY)?;
        rustix::mount::mount_change(DIRECTORY, propagation)?;
    }
    Ok(())
}

fn unshare_network() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Sets `lo` up with an ioctl (netdevice(7)), which needs no netlink socket.
fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    loopback::set_up(&socket)
}

/// The one ioctl of this module.
mod loopback {
    #![expect(unsafe_code, reason = "SIOCSIFFLAGS has no safe wrapper")]

    use super::AsFd;
    use super::OwnedFd;
    use super::io;
    use std::os::fd::AsRawFd;

    pub(super) fn set_up(socket: &OwnedFd) -> io::Result<()> {
        // SAFETY: an ifreq is plain old data for which all zeroes is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
            *place = *byte as libc::c_char;
        }
        let flags = libc::IFF_UP | libc::IFF_RUNNING;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the descriptor is open for the call, and SIOCSIFFLAGS reads one ifreq through the pointer.
        match unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
