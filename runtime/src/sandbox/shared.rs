//! The directory a sandbox shares with its guest: a tmpfs in the shim's mount namespace, a folder a container.
//!
//!     <container>/rootfs      its root file system
//!     <container>/mounts/<n>  what its spec binds from the host

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::host::mount;
use crate::host::mount::MountError;
use crate::plan::Volume;

/// Why a container's files could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// A directory.
    #[error("create {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A mount.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// A mount of a root file system, as containerd describes it.
#[derive(Debug, Clone)]
pub struct RootMount {
    /// File system type, or `bind`.
    pub kind: String,
    /// Device, path or a word.
    pub source: String,
    /// As in fstab.
    pub options: Vec<String>,
}

/// The directory.
pub struct SharedDirectory(PathBuf);

impl SharedDirectory {
    /// Makes it in `bundle`. Its content is visible in this process's mount namespace only, and goes with it.
    pub fn create(bundle: &Path) -> Result<Self, SharedError> {
        let path = bundle.join("shared");
        fs::create_dir_all(&path).map_err(|source| SharedError::Directory { path: path.clone(), source })?;
        // Only directories and empty files are ever made in it.
        let options = ["mode=0700", "size=16m", "nosuid", "nodev"].map(str::to_owned);
        mount::mount("tmpfs", "kiai", &options, &path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Puts a container's root file system and volumes in place; on an error nothing stays.
    pub fn add(
        &self,
        container: &str,
        root: &[RootMount],
        bundle: &Path,
        volumes: &[Volume],
    ) -> Result<(), SharedError> {
        self.try_add(container, root, bundle, volumes).inspect_err(|_| self.remove(container))
    }

    fn try_add(
        &self,
        container: &str,
        root: &[RootMount],
        bundle: &Path,
        volumes: &[Volume],
    ) -> Result<(), SharedError> {
        let folder = self.0.join(container);
        let rootfs = folder.join("rootfs");
        fs::create_dir_all(&rootfs)
            .map_err(|source| SharedError::Directory { path: rootfs.clone(), source })?;
        for RootMount { kind, source, options } in root {
            mount::mount(kind, source, options, &rootfs)?;
        }
        if root.is_empty() {
            mount::bind(&bundle.join("rootfs"), &rootfs, true, false)?;
        }
        for volume in volumes {
            let target = folder.join(&volume.target);
            mount::bind(&volume.source, &target, volume.recursive, volume.read_only)?;
        }
        Ok(())
    }

    /// Takes a container's mounts and folder away, whatever of them is there.
    pub fn remove(&self, container: &str) {
        let folder = self.0.join(container);
        if let Ok(volumes) = fs::read_dir(folder.join("mounts")) {
            volumes.flatten().for_each(|volume| mount::unmount(&volume.path()));
        }
        mount::unmount(&folder.join("rootfs"));
        // What could not be unmounted must not be deleted: only empty places are removed.
        if let Ok(volumes) = fs::read_dir(folder.join("mounts")) {
            for volume in volumes.flatten() {
                let path = volume.path();
                let _ = fs::remove_dir(&path).or_else(|_| fs::remove_file(&path));
            }
        }
        for path in [folder.join("mounts"), folder.join("rootfs"), folder] {
            let _ = fs::remove_dir(path);
        }
    }
}
