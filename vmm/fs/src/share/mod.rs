//! The shared directory as a FUSE file system: `fuse-backend-rs`'s passthrough, behind checks of our own.
//!
//! The passthrough holds an O_PATH descriptor per inode and resolves one name at a time without following
//! symbolic links; nodes the guest was not told of do not exist for it. [`Share`] adds what it leaves open:
//! which names and flags reach the host ([`rules`]), how much a guest may hold ([`ledger`]), and umask and
//! credentials that stay on the serving thread ([`identity`](crate::identity)).
//!
//! FUSE protocol: `include/uapi/linux/fuse.h`, version 7.

mod delegate;
mod ledger;
mod rules;

pub(crate) use self::ledger::raise_descriptor_limit;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use fuse_backend_rs::passthrough::CachePolicy;
use fuse_backend_rs::passthrough::Config;
use fuse_backend_rs::passthrough::PassthroughFs;

use self::ledger::Ledger;

/// How long the guest may use a name or attributes without asking again. The host changes the share too (it
/// mounts volumes and root file systems there), so this is what it takes for both to agree.
const VALID: Duration = Duration::from_secs(1);

/// One mount's worth of state: what the guest has looked up and opened under the shared directory.
pub(crate) struct Share {
    passthrough: PassthroughFs,
    ledger: Ledger,
    /// Keeps the path the passthrough was given alive.
    _directory: OwnedFd,
}

impl Share {
    /// Shares the open `directory`, with at most so many descriptors in the guest's hands. Nothing is read before the
    /// guest's FUSE_INIT.
    pub(crate) fn new(directory: &File, descriptors: usize) -> io::Result<Share> {
        let directory = directory.as_fd().try_clone_to_owned()?;
        let config = Config {
            // A path through the descriptor: whatever happens to the name it was opened by, this is the one.
            root_dir: format!("/proc/self/fd/{}/.", directory.as_raw_fd()),
            entry_timeout: VALID,
            attr_timeout: VALID,
            cache_policy: CachePolicy::Auto,
            writeback: false,
            xattr: true,
            // The passthrough checks names itself only when it is its own root.
            do_import: true,
            killpriv_v2: true,
            allow_direct_io: false,
            // Inode numbers of ours: the host's would limit a pod's life to 255 mounts.
            use_host_ino: false,
            ..Config::default()
        };
        Ok(Share {
            passthrough: PassthroughFs::new(config)?,
            ledger: Ledger::new(&ledger::HELD, descriptors),
            _directory: directory,
        })
    }
}
