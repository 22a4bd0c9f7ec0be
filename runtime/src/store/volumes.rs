//! Named and anonymous volumes: a directory for the content of each, made at first use, and a record.
//!
//! ```text
//! ROOT/volumes/NAME/              the content
//! ROOT/volume-records/NAME.json   the record; a volume of an older version has none
//! ROOT/locks/volumes              held while a volume is made, filled or removed
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::store::Paths;
use crate::store::file;
use crate::store::file::FileError;
use crate::store::file::Lock;
use crate::store::file::io_error;
use crate::store::timestamp::Timestamp;

/// The record of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeRecord {
    /// Name of the volume.
    pub name: String,
    /// Time at which it was made; `None` for a volume of an older version.
    pub created: Option<Timestamp>,
    /// Labels of the user.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// It was made for one container, which had no name for it.
    #[serde(default)]
    pub anonymous: bool,
}

/// The volumes below one root directory.
#[derive(Debug, Clone)]
pub struct Volumes {
    directory: PathBuf,
    records: PathBuf,
    locks: PathBuf,
}

impl Volumes {
    /// The volumes of these paths; nothing is made yet.
    pub fn new(paths: &Paths) -> Self {
        Self {
            directory: paths.volumes(),
            records: paths.root.join("volume-records"),
            locks: paths.root.join("locks"),
        }
    }

    /// The directory with a volume's content. The parser has checked the name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn record_file(&self, name: &str) -> PathBuf {
        self.records.join(format!("{name}.json"))
    }

    /// Waits for the lock that keeps volumes from being made, filled or removed.
    ///
    /// # Errors
    /// The lock cannot be taken.
    pub fn lock(&self) -> Result<Lock, FileError> {
        file::create_directories(&self.locks)?;
        Lock::exclusive(&self.locks.join("volumes"))
    }

    /// Makes a volume, unless it exists; returns whether it was made. The caller holds the lock.
    ///
    /// # Errors
    /// The directory or the record cannot be written.
    pub fn create(&self, record: &VolumeRecord) -> Result<bool, FileError> {
        let path = self.path(&record.name);
        if path.exists() {
            return Ok(false);
        }
        file::create_directories(&self.records)?;
        file::write_json(&self.record_file(&record.name), record)?;
        file::create_directories(&path)?;
        Ok(true)
    }

    /// The record of a volume; `None` if it does not exist.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<VolumeRecord>, FileError> {
        if !crate::spec::volume::is_name(name) || !self.path(name).is_dir() {
            return Ok(None);
        }
        let unrecorded = || VolumeRecord {
            name: name.to_owned(),
            created: None,
            labels: BTreeMap::new(),
            anonymous: false,
        };
        Ok(Some(file::read_json(&self.record_file(name))?.unwrap_or_else(unrecorded)))
    }

    /// All volumes, ordered by name.
    ///
    /// # Errors
    /// A directory or a record cannot be read.
    pub fn list(&self) -> Result<Vec<VolumeRecord>, FileError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read directory", &self.directory)(error)),
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            if let Some(record) = entry.file_name().to_str().map(|name| self.get(name)).transpose()? {
                found.extend(record);
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// Removes a volume and its content. The caller holds the lock and has checked that no container uses it.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        // The content first: without a record it is still a volume.
        file::remove_tree(&self.path(name))?;
        file::remove_file(&self.record_file(name))
    }

    /// Whether a volume has no content yet.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn is_empty(&self, name: &str) -> Result<bool, FileError> {
        let path = self.path(name);
        let mut entries = fs::read_dir(&path).map_err(io_error("read directory", &path))?;
        Ok(entries.next().is_none())
    }
}

/// The size of a tree: bytes that its files occupy on the disk. Files that cannot be read count nothing.
pub fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let below = if metadata.is_dir() {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size(&entry.path())).sum()
    } else {
        0
    };
    metadata.blocks() * 512 + below
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> VolumeRecord {
        VolumeRecord {
            name: name.to_owned(),
            created: Some(Timestamp::now()),
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            anonymous: false,
        }
    }

    #[test]
    fn volumes_are_made_found_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let paths =
            Paths { root: root.path().into(), state: root.path().into(), namespace: "default".into() };
        let volumes = Volumes::new(&paths);
        assert_eq!(volumes.list().unwrap(), []);
        let _lock = volumes.lock().unwrap();
        // Two names of which one looks like the other's record.
        for name in ["data", "data.json"] {
            assert!(volumes.create(&record(name)).unwrap());
            assert!(!volumes.create(&record(name)).unwrap(), "it exists");
        }
        fs::create_dir(volumes.path("old")).unwrap();
        let names: Vec<String> = volumes.list().unwrap().into_iter().map(|volume| volume.name).collect();
        assert_eq!(names, ["data", "data.json", "old"]);
        assert_eq!(volumes.get("data").unwrap().unwrap().labels["a"], "b");
        assert_eq!(volumes.get("old").unwrap().unwrap().created, None);
        assert!(volumes.get("../data").unwrap().is_none());
        assert!(volumes.is_empty("data").unwrap());
        fs::write(volumes.path("data").join("file"), "x").unwrap();
        assert!(!volumes.is_empty("data").unwrap());
        volumes.remove("data").unwrap();
        assert!(volumes.get("data").unwrap().is_none());
        assert_eq!(volumes.list().unwrap().len(), 2);
    }
}
