//! The registry: all devices that the CDI files of this host define.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use super::file::ContainerEdits;
use super::file::File;
use super::name::DeviceName;

/// The directories of CDI files. A later directory has precedence over an earlier one.
const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// A device cannot be found.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegistryError {
    /// No readable file defines the device. A file that cannot be read may define it.
    #[error("CDI device {name}: no file in {} defines it{}", DIRECTORIES.join(" or "), not_readable(.broken))]
    Unknown {
        /// The device.
        name: DeviceName,
        /// The files that cannot be read, each with the reason.
        broken: Vec<String>,
    },
    /// Two files of one directory define the device.
    #[error("CDI device {name}: both {} and {} define it; remove one", one.display(), other.display())]
    Ambiguous {
        /// The device.
        name: DeviceName,
        /// One of the files.
        one: PathBuf,
        /// The other file.
        other: PathBuf,
    },
}

fn not_readable(files: &[String]) -> String {
    if files.is_empty() { String::new() } else { format!(" (not readable: {})", files.join("; ")) }
}

/// All devices of this host, by name.
#[derive(Debug, Default)]
pub struct Registry {
    files: Vec<(PathBuf, File)>,
    /// For each device an index into `files` and an index into the devices of that file.
    devices: BTreeMap<DeviceName, (usize, usize)>,
    ambiguous: BTreeMap<DeviceName, (usize, usize)>,
    broken: Vec<String>,
}

impl Registry {
    /// Reads the host's CDI files. A file that cannot be read does not affect the others; the error for a missing
    /// device names it.
    pub fn read() -> Self {
        Self::read_from(&DIRECTORIES.map(Path::new))
    }

    pub(super) fn read_from(directories: &[&Path]) -> Self {
        let mut registry = Self::default();
        for directory in directories {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
            paths.sort();
            let mut here = BTreeMap::new();
            for path in paths {
                match read_file(&path) {
                    Ok(None) => {}
                    Ok(Some(file)) => registry.add(path, file, &mut here),
                    Err(reason) => registry.broken.push(format!("{}: {reason}", path.display())),
                }
            }
            registry.ambiguous.retain(|name, _| !here.contains_key(name));
            for (name, found) in here {
                match found[..] {
                    [(file, _), (other, _), ..] => {
                        registry.devices.remove(&name);
                        registry.ambiguous.insert(name, (file, other));
                    }
                    [only] => drop(registry.devices.insert(name, only)),
                    [] => {}
                }
            }
        }
        registry
    }

    fn add(&mut self, path: PathBuf, file: File, here: &mut BTreeMap<DeviceName, Vec<(usize, usize)>>) {
        for (index, device) in file.devices.iter().enumerate() {
            let name = DeviceName { kind: file.kind.clone(), device: device.name.clone() };
            here.entry(name).or_default().push((self.files.len(), index));
        }
        self.files.push((path, file));
    }

    /// The edits for these devices, in order, each with the name of its device. The edits of a file that apply to all
    /// its devices come once, before the first of them.
    pub(super) fn edits(
        &self,
        names: &[DeviceName],
    ) -> Result<Vec<(DeviceName, &ContainerEdits)>, RegistryError> {
        let mut edits = Vec::new();
        let mut seen = Vec::new();
        for name in names {
            if let Some(&(one, other)) = self.ambiguous.get(name) {
                let (one, other) = (self.files[one].0.clone(), self.files[other].0.clone());
                return Err(RegistryError::Ambiguous { name: name.clone(), one, other });
            }
            let Some(&(index, device)) = self.devices.get(name) else {
                return Err(RegistryError::Unknown { name: name.clone(), broken: self.broken.clone() });
            };
            let file = &self.files[index].1;
            if !seen.contains(&index) {
                seen.push(index);
                edits.push((name.clone(), &file.container_edits));
            }
            edits.push((name.clone(), &file.devices[device].container_edits));
        }
        Ok(edits)
    }
}

/// `None` for a file that is not a CDI file.
fn read_file(path: &Path) -> Result<Option<File>, String> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    if !matches!(extension, Some("json" | "yaml" | "yml")) {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let file: File = match extension {
        Some("json") => serde_json::from_str(&text).map_err(|error| error.to_string())?,
        _ => serde_saphyr::from_str(&text)
            .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())?,
    };
    file.check()?;
    Ok(Some(file))
}
