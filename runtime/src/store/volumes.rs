//! Named volumes: one directory per volume, made at first use.

use std::path::PathBuf;

use crate::store::Paths;
use crate::store::file;
use crate::store::file::FileError;

/// The directory of a named volume, made if it does not exist. The parser has checked the name.
///
/// # Errors
/// The directory cannot be made.
pub fn volume_directory(paths: &Paths, name: &str) -> Result<PathBuf, FileError> {
    let directory = paths.volumes().join(name);
    file::create_directories(&directory)?;
    Ok(directory)
}
