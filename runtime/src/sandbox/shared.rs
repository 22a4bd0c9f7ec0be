//! The directory the guest sees through virtio-fs: `<container>/rootfs`, `<container>/mounts/<n>`.
//!
//! A small tmpfs in the bundle, in this process's mount namespace only, holds the mount points; the guest gets a
//! read-only view of it that follows the mounts below, so it can write where a mount is writable and nowhere
//! else.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::host::MountError;
use crate::host::Mounted;
use crate::host::mount;

/// The shared directory of one sandbox. Dropping it unmounts it.
pub struct SharedDirectory {
    // Dropped in this order.
    view: Mounted,
    host: Mounted,
}

impl SharedDirectory {
    /// Makes the shared directory inside the bundle.
    pub fn create(bundle: &Path) -> Result<Self, MountError> {
        let directory = |name: &str| -> Result<PathBuf, MountError> {
            let path = bundle.join(name);
            match std::fs::create_dir(&path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    Err(MountError { step: "create", path, source: e })
                }
                _ => Ok(path),
            }
        };
        let host = mount::small_tmpfs(&directory("shared")?)?;
        let view = mount::read_only_view(host.path(), &directory("view")?)?;
        Ok(Self { view, host })
    }

    /// The directory below which volumes are mounted.
    pub fn path(&self) -> &Path {
        self.host.path()
    }

    /// The read-only view of it, which the guest is given.
    pub fn view(&self) -> &Path {
        self.view.path()
    }
}
