//! One container's directory.

use std::path::Path;
use std::path::PathBuf;

use crate::store::StoreError;
use crate::store::file;
use crate::store::file::FileError;
use crate::store::file::Lock;
use crate::store::paths::ContainerPaths;
use crate::store::record::Record;
use crate::store::record::VERSION;

/// One container's directory. Reading needs no lock, for records are replaced whole; changing does.
#[derive(Debug, Clone)]
pub struct ContainerDirectory {
    paths: ContainerPaths,
}

impl ContainerDirectory {
    pub(super) fn new(paths: ContainerPaths) -> Self {
        Self { paths }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.paths.id
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.paths.directory
    }

    /// Its OCI bundle.
    pub fn bundle(&self) -> PathBuf {
        self.paths.bundle()
    }

    /// What it wrote.
    pub fn data(&self) -> &Path {
        &self.paths.data
    }

    /// Short links to its layers.
    pub fn links(&self) -> &Path {
        &self.paths.links
    }

    /// What the network module needs to undo its work.
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

    /// Waits until nobody else changes the container. None if it was removed meanwhile.
    ///
    /// # Errors
    /// The lock cannot be taken.
    pub fn lock(&self) -> Result<Option<Lock>, StoreError> {
        match Lock::exclusive(&self.lock_file()) {
            // Who waited for a removal has locked a file that is in no directory any more.
            Ok(lock) => Ok(self.lock_file().exists().then_some(lock)),
            Err(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the lock unless somebody changes the container right now.
    ///
    /// # Errors
    /// The lock cannot be taken.
    pub fn try_lock(&self) -> Result<Option<Lock>, StoreError> {
        Ok(Lock::try_exclusive(&self.lock_file())?.filter(|_| self.lock_file().exists()))
    }

    /// The record, if one was written.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or another version wrote it.
    pub fn record(&self) -> Result<Option<Record>, StoreError> {
        #[derive(serde::Deserialize)]
        struct Versioned {
            version: u64,
        }
        let path = self.record_file();
        // The version first: what else there is depends on it.
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
    /// It cannot be written; the one before stands.
    pub fn write_record(&self, record: &Record) -> Result<(), StoreError> {
        Ok(file::write_json(&self.record_file(), record)?)
    }
}
