//! Where everything is. Pure.

use std::path::Path;
use std::path::PathBuf;

/// The three things that say where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// What outlives a reboot: images, volumes, what containers wrote. `/var/lib/kiai`, or `KIAI_ROOT`.
    pub root: PathBuf,
    /// What does not: records, bundles, sockets. `/run/kiai`, or `KIAI_STATE`.
    pub state: PathBuf,
    /// Containers of one namespace do not see those of another. `default`, or `KIAI_NAMESPACE`.
    pub namespace: String,
}

impl Paths {
    /// The directory of the namespace.
    pub fn namespace_directory(&self) -> PathBuf {
        self.state.join(&self.namespace)
    }

    /// Held while names change.
    pub fn namespace_lock(&self) -> PathBuf {
        self.namespace_directory().join("lock")
    }

    /// A symbolic link a name.
    pub fn names(&self) -> PathBuf {
        self.namespace_directory().join("names")
    }

    /// A directory a container.
    pub fn containers(&self) -> PathBuf {
        self.namespace_directory().join("containers")
    }

    /// A directory a named volume.
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
    /// Record, lock, bundle.
    pub directory: PathBuf,
    /// What it wrote.
    pub data: PathBuf,
    /// Short links to layers.
    pub links: PathBuf,
}

impl ContainerPaths {
    /// The OCI bundle.
    pub fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }
}

/// Whether a text can be part of a path: no separator, no hidden file.
pub fn is_path_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && Path::new(text).components().count() == 1
        && !text.contains('/')
}
