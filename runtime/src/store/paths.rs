//! The paths of the store. Pure.

use std::path::Path;
use std::path::PathBuf;

/// The root directory, the state directory and the namespace, which determine all paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Root directory, which outlives a reboot: images, volumes, writable layers. `/var/lib/kiai`, or `KIAI_ROOT`.
    pub root: PathBuf,
    /// State directory, which does not: records, bundles, sockets. `/run/kiai`, or `KIAI_STATE`.
    pub state: PathBuf,
    /// Namespace, which separates sets of containers. `default`, or `KIAI_NAMESPACE`.
    pub namespace: String,
}

impl Paths {
    /// The directory of the namespace.
    pub fn namespace_directory(&self) -> PathBuf {
        self.state.join(&self.namespace)
    }

    /// The lock file held while names change.
    pub fn namespace_lock(&self) -> PathBuf {
        self.namespace_directory().join("lock")
    }

    /// The directory of names, with one symbolic link per name.
    pub fn names(&self) -> PathBuf {
        self.namespace_directory().join("names")
    }

    /// The directory of containers, with one directory per container.
    pub fn containers(&self) -> PathBuf {
        self.namespace_directory().join("containers")
    }

    /// The directory of named volumes, with one directory per volume.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The places of one container.
    pub fn container(&self, id: &str) -> ContainerPaths {
        ContainerPaths {
            id: id.to_owned(),
            directory: self.containers().join(id),
            data: self.root.join("containers").join(id),
            links: self.state.join("l").join(id),
        }
    }
}

/// The places of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPaths {
    /// The container.
    pub id: String,
    /// The directory of record, lock and bundle.
    pub directory: PathBuf,
    /// The directory of the writable layer.
    pub data: PathBuf,
    /// The directory of short links to layers.
    pub links: PathBuf,
}

impl ContainerPaths {
    /// The OCI bundle.
    pub fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }
}

/// Whether a text is a safe component of a path: no separator, no hidden file.
pub fn is_path_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && Path::new(text).components().count() == 1
        && !text.contains('/')
}
