//! The mounts of a container on the host: its root file system and volumes in the sandbox's shared directory, and
//! volumes that are plugged in later, each in a shared directory of its own.

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

/// A container's part of the shared directory. Dropping it unmounts everything and removes the mount points.
pub(super) struct ContainerMounts {
    /// Undone from the last to the first.
    mounts: Vec<Mounted>,
    directory: PathBuf,
}

impl ContainerMounts {
    /// Mounts the root file system (`rootfs`; when that is empty, `fallback` is bound) and the volumes.
    pub(super) fn mount(
        directory: PathBuf,
        rootfs: &[FsMount],
        fallback: &Path,
        volumes: &[Volume],
    ) -> Result<Self, MountError> {
        create_dir(&directory)?;
        let mut made = Self { mounts: Vec::new(), directory };
        let root = made.directory.join("rootfs");
        create_dir(&root)?;
        if rootfs.is_empty() {
            made.mounts.push(mount::bind(fallback, &root, true, false)?);
        } else {
            made.mounts.extend(rootfs::mount_all(rootfs, &root)?);
        }
        create_dir(&made.directory.join("mounts"))?;
        for volume in volumes {
            made.mounts.push(bind(volume, &made.directory)?);
        }
        Ok(made)
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

/// A plugged volume: its mount in a shared directory of its own. Dropping it unmounts and removes both.
pub(super) struct VolumeMount {
    /// Dropped from the first to the last; none while it is being made or dropped.
    mounts: Option<(Mounted, SharedDirectory)>,
    directory: PathBuf,
}

impl VolumeMount {
    /// Makes a shared directory in `directory`, which must not exist, and mounts the volume in it.
    pub(super) fn mount(directory: PathBuf, volume: &Volume) -> Result<Self, MountError> {
        create_dir(&directory)?;
        let mut share = Self { mounts: None, directory };
        let shared = SharedDirectory::create(&share.directory)?;
        share.mounts = Some((bind(volume, shared.path())?, shared));
        Ok(share)
    }

    /// The directory that the guest is given, a view of the shared one.
    pub(super) fn view(&self) -> &Path {
        self.mounts.as_ref().map_or(&self.directory, |(_, shared)| shared.view())
    }
}

impl Drop for VolumeMount {
    fn drop(&mut self) {
        drop(self.mounts.take());
        // Only empty mount points are left; if an unmount failed, its mount point is not empty and stays.
        let mut entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let removed = entries.try_for_each(|entry| std::fs::remove_dir(entry.path()));
        if let Err(error) = removed.and_then(|()| std::fs::remove_dir(&self.directory)) {
            tracing::warn!(path = %self.directory.display(), %error, "mount points stay");
        }
    }
}

impl Drop for ContainerMounts {
    fn drop(&mut self) {
        while let Some(mounted) = self.mounts.pop() {
            drop(mounted);
        }
        // Only mount points are left; if an unmount failed, its mount point is not empty and stays.
        if let Err(error) = remove_mount_points(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "mount points stay");
        }
    }
}

/// Removes empty directories and files; never descends into a mount that could not be unmounted.
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
