//! The directory of one container.

use std::path::Path;
use std::path::PathBuf;

use crate::store::StoreError;
use crate::store::file;
use crate::store::file::FileError;
use crate::store::file::Lock;
use crate::store::paths::ContainerPaths;
use crate::store::record::Record;
use crate::store::record::VERSION;

/// The directory of one container. A reader needs no lock, as records are replaced atomically; a writer does.
#[derive(Debug, Clone)]
pub struct ContainerDirectory {
    paths: ContainerPaths,
}

impl ContainerDirectory {
    pub(super) fn new(paths: ContainerPaths) -> Self {
        Self { paths }
    }

    /// Id of the container.
    pub fn id(&self) -> &str {
        &self.paths.id
    }

    /// Path of the directory.
    pub fn directory(&self) -> &Path {
        &self.paths.directory
    }

    /// Path of the OCI bundle.
    pub fn bundle(&self) -> PathBuf {
        self.paths.bundle()
    }

    /// Path of the writable layer's directory.
    pub fn data(&self) -> &Path {
        &self.paths.data
    }

    /// Path of the short links to layers.
    pub fn links(&self) -> &Path {
        &self.paths.links
    }

    /// Path of the log of its output.
    pub fn log_file(&self) -> PathBuf {
        self.bundle().join("container.log")
    }

    /// Path of the network's record.
    pub fn network_file(&self) -> PathBuf {
        self.paths.directory.join("network.json")
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.paths.directory.join("lock")
    }

    fn record_file(&self) -> PathBuf {
        self.paths.directory.join("record.json")
    }

    pub(super) fn record_exists(&self) -> bool {
        self.record_file().exists()
    }

    /// Waits for the container's lock. `None` if the container was removed meanwhile.
    ///
    /// # Errors
    /// The lock cannot be taken.
    pub fn lock(&self) -> Result<Option<Lock>, StoreError> {
        match Lock::exclusive(&self.lock_file()) {
            // After a removal the locked file is not in the directory any more.
            Ok(lock) => Ok(self.lock_file().exists().then_some(lock)),
            Err(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the container's lock if it is free.
    ///
    /// # Errors
    /// The lock cannot be taken.
    pub fn try_lock(&self) -> Result<Option<Lock>, StoreError> {
        Ok(Lock::try_exclusive(&self.lock_file())?.filter(|_| self.lock_file().exists()))
    }

    /// Reads the record; `None` if none was written yet.
    ///
    /// # Errors
    /// The record cannot be read, is damaged, or has another version.
    pub fn record(&self) -> Result<Option<Record>, StoreError> {
        #[derive(serde::Deserialize)]
        struct Versioned {
            version: u64,
        }
        let path = self.record_file();
        // The version is read first, because the other fields depend on it.
        match file::read_json::<Versioned>(&path)? {
            Some(Versioned { version: VERSION }) => Ok(file::read_json(&path)?),
            Some(Versioned { version }) => {
                Err(FileError::Version { path, found: version, expected: VERSION }.into())
            }
            None => Ok(None),
        }
    }

    /// Writes the record. The caller holds the lock.
    ///
    /// # Errors
    /// The record cannot be written; the old one is unchanged.
    pub fn write_record(&self, record: &Record) -> Result<(), StoreError> {
        Ok(file::write_json(&self.record_file(), record)?)
    }
}
