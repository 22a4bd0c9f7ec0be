//! The namespaces in which this process was started. A shim leaves them for a mount namespace of its own and for the
//! pod's network namespace, in which its pid shows clients the pod's interfaces; programs of the host run in the first.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::sync::OnceLock;

use nix::sched::CloneFlags;
use rustix::thread::LinkNameSpaceType;

static HOST: OnceLock<Namespaces> = OnceLock::new();

struct Namespaces {
    mount: File,
    network: File,
    /// Device and inode, which identify the network namespace.
    identity: (u64, u64),
}

impl Namespaces {
    fn current() -> io::Result<Self> {
        let network = File::open("/proc/thread-self/ns/net")?;
        let metadata = network.metadata()?;
        let mount = File::open("/proc/thread-self/ns/mnt")?;
        Ok(Self { mount, network, identity: (metadata.dev(), metadata.ino()) })
    }

    fn enter(&self) -> io::Result<()> {
        // Threads that share a working directory cannot change their mount namespace.
        nix::sched::unshare(CloneFlags::CLONE_FS)?;
        rustix::thread::move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
        rustix::thread::move_into_link_name_space(self.mount.as_fd(), Some(LinkNameSpaceType::Mount))?;
        Ok(())
    }
}

/// Remembers the current namespaces as the host's. To be called before the process leaves them.
pub fn remember() -> io::Result<()> {
    let current = Namespaces::current()?;
    // A second call changes nothing: the first is that of the start.
    HOST.get_or_init(|| current);
    Ok(())
}

/// Whether a network namespace is the host's: the remembered one, or the process's own.
pub fn is_hosts_network(namespace: &std::fs::Metadata) -> io::Result<bool> {
    let host = match HOST.get() {
        Some(host) => host.identity,
        None => std::fs::metadata("/proc/self/ns/net").map(|own| (own.dev(), own.ino()))?,
    };
    Ok(host == (namespace.dev(), namespace.ino()))
}

/// Enters the network namespace at `path`, with every thread that is started later. To be called while the process has
/// one thread.
pub fn enter_network(path: &Path) -> io::Result<()> {
    let namespace = File::open(path)?;
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Enters a new network namespace; as `enter_network`.
pub fn enter_new_network() -> io::Result<()> {
    Ok(nix::sched::unshare(CloneFlags::CLONE_NEWNET)?)
}

/// Starts a program in the host's namespaces: the remembered ones, or the process's own.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let Some(host) = HOST.get() else { return command.spawn() };
    std::thread::scope(|scope| {
        // Namespaces belong to a thread; this one ends with them.
        let work = || host.enter().and_then(|()| command.spawn());
        let thread = std::thread::Builder::new().name("host".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts it panicked")))
    })
}
