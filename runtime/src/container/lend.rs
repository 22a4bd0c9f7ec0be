//! What the host lends a container: its root file system and volumes, mounted in the shared directory; volumes
//! that come later, each in one of its own.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::host::MountError;
use crate::host::Mounted;
use crate::host::mount;
use crate::host::rootfs;
use crate::host::rootfs::FsMount;
use crate::plan::Volume;
use crate::plan::VolumeKind;
use crate::sandbox::SharedDirectory;

/// A container's part of the shared directory. Dropping it unmounts everything and removes it.
pub(super) struct Lent {
    /// Undone from the last to the first.
    mounts: Vec<Mounted>,
    directory: PathBuf,
}

impl Lent {
    /// Mounts the root file system (`rootfs`; when that is empty, `fallback` is bound) and the volumes.
    pub(super) fn mount(
        directory: PathBuf,
        rootfs: &[FsMount],
        fallback: &Path,
        volumes: &[Volume],
    ) -> Result<Self, MountError> {
        create_dir(&directory)?;
        let mut lent = Self { mounts: Vec::new(), directory };
        let root = lent.directory.join("rootfs");
        create_dir(&root)?;
        if rootfs.is_empty() {
            lent.mounts.push(mount::bind(fallback, &root, true, false)?);
        } else {
            lent.mounts.extend(rootfs::mount_all(rootfs, &root)?);
        }
        create_dir(&lent.directory.join("mounts"))?;
        for volume in volumes {
            lent.mounts.push(bind(volume, &lent.directory)?);
        }
        Ok(lent)
    }
}

/// Mounts a volume at its target below `directory`.
fn bind(volume: &Volume, directory: &Path) -> Result<Mounted, MountError> {
    let at = directory.join(&volume.target);
    match volume.kind {
        VolumeKind::Directory => create_dir(&at)?,
        VolumeKind::File => {
            std::fs::write(&at, "").map_err(|source| failed("create", &at, source))?;
        }
    }
    mount::bind(&volume.source, &at, volume.recursive, volume.read_only)
}

/// One volume in a shared directory of its own. Dropping it unmounts and removes both.
pub(super) struct OwnShare {
    /// Undone from the first to the last; none while it is made or dropped.
    mounts: Option<(Mounted, SharedDirectory)>,
    directory: PathBuf,
}

impl OwnShare {
    /// Makes the shared directory in `directory`, which must be new, and mounts the volume in it.
    pub(super) fn mount(directory: PathBuf, volume: &Volume) -> Result<Self, MountError> {
        create_dir(&directory)?;
        let mut share = Self { mounts: None, directory };
        let shared = SharedDirectory::create(&share.directory)?;
        share.mounts = Some((bind(volume, shared.path())?, shared));
        Ok(share)
    }

    /// What the guest is given.
    pub(super) fn view(&self) -> &Path {
        self.mounts.as_ref().map_or(&self.directory, |(_, shared)| shared.view())
    }
}

impl Drop for OwnShare {
    fn drop(&mut self) {
        drop(self.mounts.take());
        // Only empty mount points are left; should an unmount have failed, one that is not empty stays.
        let mut entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let removed = entries.try_for_each(|entry| std::fs::remove_dir(entry.path()));
        if let Err(error) = removed.and_then(|()| std::fs::remove_dir(&self.directory)) {
            tracing::warn!(path = %self.directory.display(), %error, "mount points stay");
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        while let Some(mounted) = self.mounts.pop() {
            drop(mounted);
        }
        // Only mount points are left; should an unmount have failed, a directory that is not empty stays.
        if let Err(error) = remove_mount_points(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "mount points stay");
        }
    }
}

/// Removes empty directories and files, never what lies in a mount that would not go.
fn remove_mount_points(directory: &Path) -> io::Result<()> {
    let mounts = directory.join("mounts");
    if mounts.exists() {
        for entry in std::fs::read_dir(&mounts)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        std::fs::remove_dir(&mounts)?;
    }
    let root = directory.join("rootfs");
    if root.exists() {
        std::fs::remove_dir(&root)?;
    }
    std::fs::remove_dir(directory)
}

fn create_dir(path: &Path) -> Result<(), MountError> {
    std::fs::create_dir(path).map_err(|source| failed("create", path, source))
}

fn failed(step: &'static str, path: &Path, source: io::Error) -> MountError {
    MountError { step, path: path.into(), source }
}
