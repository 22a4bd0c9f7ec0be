//! A container's root file system: an overlay of its image's layers and the writable layer
//! (Linux `Documentation/filesystems/overlayfs.rst`). This module makes directories and mount options; the shim
//! mounts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use crate::store::ContainerDirectory;
use crate::store::Paths;
use crate::store::file;
use crate::store::file::FileError;
use crate::store::file::io_error;

/// Name of the file with the [`owner_mark`].
pub(super) const OWNER: &str = "owner";

/// Maximum length of a list of layers without short links. The options of mount(2) are limited to one page, of which
/// the other options need a part.
const LONGEST_LIST: usize = 3000;

/// The content of the owner file: the state directory and namespace of the container. Several state directories may
/// share one root directory, and a layer is an orphan only for its own state directory.
pub(super) fn owner_mark(paths: &Paths) -> Vec<u8> {
    let state = fs::canonicalize(&paths.state).unwrap_or_else(|_| paths.state.clone());
    format!("{}\n{}\n", state.display(), paths.namespace).into_bytes()
}

/// Makes the writable layer, with the attributes of the root directory.
///
/// # Errors
/// A directory cannot be made.
pub fn create_upper(
    paths: &Paths,
    container: &ContainerDirectory,
    layers: &[PathBuf],
) -> Result<(), FileError> {
    let data = container.data();
    file::create_directories(data)?;
    file::replace(&data.join(OWNER), &owner_mark(paths))?;
    for name in ["upper", "work"] {
        let directory = data.join(name);
        fs::create_dir(&directory).map_err(io_error("create directory", &directory))?;
    }
    let upper = data.join("upper");
    // The root of an overlay has the attributes of its topmost layer, which is the empty one.
    if let Some(top) = layers.first() {
        let metadata = fs::metadata(top).map_err(io_error("read", top))?;
        let permissions = fs::Permissions::from_mode(metadata.mode() & 0o7777);
        fs::set_permissions(&upper, permissions).map_err(io_error("set the mode of", &upper))?;
        std::os::unix::fs::chown(&upper, Some(metadata.uid()), Some(metadata.gid()))
            .map_err(io_error("set the owner of", &upper))?;
    }
    Ok(())
}

/// Path of the writable layer.
pub fn upper(container: &ContainerDirectory) -> PathBuf {
    container.data().join("upper")
}

/// The options of the overlay mount. Short links are used if the list of layers is too long for mount(2), or if the
/// path of a layer has a character with a meaning in the list.
///
/// # Errors
/// A link cannot be made.
pub fn overlay_options(container: &ContainerDirectory, layers: &[PathBuf]) -> Result<Vec<String>, FileError> {
    let plain: Option<Vec<&str>> = layers.iter().map(|layer| plain_path(layer)).collect();
    let list = match plain.map(|layers| layers.join(":")) {
        Some(list) if list.len() <= LONGEST_LIST => list,
        _ => linked_list(container.links(), layers)?,
    };
    Ok(vec![
        format!("lowerdir={list}"),
        format!("upperdir={}", upper(container).display()),
        format!("workdir={}", container.data().join("work").display()),
    ])
}

fn plain_path(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| !text.contains([':', ',', '\\']))
}

fn linked_list(links: &Path, layers: &[PathBuf]) -> Result<String, FileError> {
    // Those of an earlier start.
    file::remove_tree(links)?;
    file::create_directories(links)?;
    let mut list = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let link = links.join(number.to_string());
        std::os::unix::fs::symlink(layer, &link).map_err(io_error("create", &link))?;
        list.push(link.display().to_string());
    }
    Ok(list.join(":"))
}
