//! Files that are replaced atomically, directories that are removed recursively, and locks.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A file cannot be read, written, locked or removed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The step, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The content of the file is invalid.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        #[source]
        source: serde_json::Error,
    },
    /// The file has another version.
    #[error("{} has version {found}, this kiai reads version {expected}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Version of the file.
        found: u64,
        /// The supported version.
        expected: u64,
    },
}

/// For `map_err`: names the step and the file.
pub fn io_error(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> FileError {
    let path = path.into();
    move |source| FileError::Io { action, path, source }
}

/// Makes a directory and its parents.
///
/// # Errors
/// One of them cannot be made.
pub fn create_directories(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(io_error("create directory", path))
}

/// Replaces a file atomically: a reader sees the old or the new content.
///
/// # Errors
/// The kernel refused; the old file is unchanged.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content));
    written.map_err(io_error("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("replace", path))
}

/// Writes a value as JSON; replaces the file atomically.
///
/// # Errors
/// As [`replace`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| FileError::Damaged { path: path.to_owned(), source })?;
    replace(path, &text)
}

/// Reads a value; `None` if the file does not exist.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| FileError::Damaged { path: path.to_owned(), source })
}

/// Removes a file; a missing file is no error.
///
/// # Errors
/// The kernel refused.
pub fn remove_file(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory with its content; a missing directory is no error. Links are not followed.
///
/// # Errors
/// A file in it cannot be removed.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// An exclusive flock(2), released on drop and at the end of the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn exclusive(path: &Path) -> Result<Self, FileError> {
        let file = Self::open(path)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
            .map_err(|errno| io_error("lock", path)(errno.into()))?;
        Ok(Self { _file: file })
    }

    /// Takes the lock if it is free.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>, FileError> {
        let file = match Self::open(path) {
            // The directory was removed meanwhile, by a process that held the lock.
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(io_error("lock", path)(errno.into())),
        }
    }

    fn open(path: &Path) -> Result<File, FileError> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io_error("open", path))
    }
}
