//! The store of containers, which outlives a command: for each container one directory below the state directory, and
//! its writable layer below the root directory.
//!
//! ```text
//! STATE/NAMESPACE/lock                      held while a name is made or removed
//! STATE/NAMESPACE/names/NAME                symbolic link to an id; making it fails for a name in use
//! STATE/NAMESPACE/containers/ID/lock        held by the command that changes the container
//! STATE/NAMESPACE/containers/ID/record.json the record, replaced atomically
//! STATE/NAMESPACE/containers/ID/bundle/     the OCI bundle; the shim adds its own files
//! STATE/l/ID/                               short links to layers, if an image has very many
//! ROOT/containers/ID/{upper,work}           the writable layer
//! ROOT/volumes/NAME/                        named volumes ([`volumes`])
//! STATE/NAMESPACE/events.jsonl              what happened to containers ([`events`])
//! ```
//!
//! The state directory is on a tmpfs. A reboot removes it, and ends all containers; a writable layer that remains below
//! ROOT/containers is an orphan, and [`Store::remove_orphans`] removes it.
//!
//! Lock order: namespace, then container. It must not know: shims, networks, images, the CLI's options.

pub mod container;
pub mod events;
pub mod file;
pub mod layers;
pub mod paths;
pub mod record;
pub mod restart;
pub mod rootfs;
pub mod timestamp;
pub mod volumes;

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

pub use container::ContainerDirectory;
pub use paths::Paths;
pub use record::Record;

use crate::store::file::FileError;
use crate::store::file::Lock;
use crate::store::file::io_error;

/// An operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read, written or locked.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another container has the name.
    #[error("the name {name:?} is taken by container {id}; remove it (kiai rm {name}) or choose another")]
    NameTaken {
        /// The name.
        name: String,
        /// Id of the container with the name.
        id: String,
    },
    /// The text is not the name or id of a container.
    #[error("no such container: {0}")]
    NoContainer(String),
    /// The text is the beginning of several containers' ids.
    #[error("{text:?} is the beginning of several containers' ids: {ids}")]
    Ambiguous {
        /// The text.
        text: String,
        /// The ids.
        ids: String,
    },
    /// The kernel returned no random bytes.
    #[error("cannot draw a container id")]
    Random(#[source] rustix::io::Errno),
}

/// The containers of one namespace.
#[derive(Debug, Clone)]
pub struct Store {
    paths: Paths,
}

impl Store {
    /// The store at these paths. Directories are made at the first write.
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }

    /// The store's paths.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Makes a container's directory, links `name` to it, and returns it locked. Other commands do not see the
    /// container until its record is written.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`]; every error removes the directory again.
    pub fn create(&self, name: &str) -> Result<(ContainerDirectory, Lock), StoreError> {
        let containers = self.paths.containers();
        file::create_directories(&containers)?;
        file::create_directories(&self.paths.names())?;
        let _namespace = Lock::exclusive(&self.paths.namespace_lock())?;
        if let Some(id) = self.name_owner(name) {
            return Err(StoreError::NameTaken { name: name.to_owned(), id });
        }
        let id = random_id().map_err(StoreError::Random)?;
        let container = ContainerDirectory::new(self.paths.container(&id));
        fs::create_dir(container.directory()).map_err(io_error("create directory", container.directory()))?;
        let made = Lock::exclusive(&container.lock_file())
            .map_err(StoreError::from)
            .and_then(|lock| self.claim_name(name, &id).map(|()| lock));
        match made {
            Ok(lock) => Ok((container, lock)),
            Err(error) => {
                // No other command knows the directory yet. The first error is returned.
                let _ = fs::remove_dir_all(container.directory());
                Err(error)
            }
        }
    }

    /// Id of the container with a name; `None` if the container does not exist any more, or has another name by now.
    fn name_owner(&self, name: &str) -> Option<String> {
        let id = fs::read_link(self.paths.names().join(name)).ok()?.to_str()?.to_owned();
        let container = ContainerDirectory::new(self.paths.container(&id));
        // A container without a record is being made, and a damaged record is an error of the caller's next step.
        let owns = !matches!(container.record(), Ok(Some(record)) if record.name != name);
        (container.directory().exists() && owns).then_some(id)
    }

    /// Gives a container another name. The caller holds its lock. If the process is killed half-way, the container has
    /// the old name or the new one, and a link that is left over is replaced by the next container with its name.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], or the record or a link cannot be written.
    pub fn rename(
        &self,
        container: &ContainerDirectory,
        record: &mut Record,
        name: &str,
    ) -> Result<(), StoreError> {
        let _namespace = Lock::exclusive(&self.paths.namespace_lock())?;
        if let Some(id) = self.name_owner(name) {
            return Err(StoreError::NameTaken { name: name.to_owned(), id });
        }
        self.claim_name(name, container.id())?;
        let old = std::mem::replace(&mut record.name, name.to_owned());
        container.write_record(record)?;
        let link = self.paths.names().join(old);
        Ok(file::remove_file(&link)?)
    }

    /// Links the name to the id. The caller holds the namespace lock and has checked that the name is free.
    fn claim_name(&self, name: &str, id: &str) -> Result<(), StoreError> {
        let link = self.paths.names().join(name);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &link)(error).into());
            }
            _ => {}
        }
        std::os::unix::fs::symlink(id, &link).map_err(io_error("create", &link))?;
        Ok(())
    }

    /// All containers with a record, oldest first. A container without a record, which another command is making, is
    /// skipped. A record that cannot be read is an error that names it.
    ///
    /// # Errors
    /// A directory or a record cannot be read.
    pub fn list(&self) -> Result<Vec<(ContainerDirectory, Record)>, StoreError> {
        let mut found = Vec::new();
        for container in self.directories()? {
            if let Some(record) = container.record()? {
                found.push((container, record));
            }
        }
        found.sort_by_key(|(_, record)| record.created);
        Ok(found)
    }

    /// The stores of all namespaces of this state directory.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn of_every_namespace(&self) -> Result<Vec<Self>, StoreError> {
        let state = &self.paths.state;
        let entries = match fs::read_dir(state) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read directory", state)(error).into()),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let stores = names.map(|namespace| Self::new(Paths { namespace, ..self.paths.clone() }));
        Ok(stores.filter(|store| store.paths.containers().is_dir()).collect())
    }

    /// Directories without a record whose lock is free: the command that made them was killed.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn abandoned(&self) -> Result<Vec<(ContainerDirectory, Lock)>, StoreError> {
        let mut found = Vec::new();
        for container in self.directories()? {
            if container.record_exists() {
                continue;
            }
            if let Some(lock) = Lock::try_exclusive(&container.lock_file())?
                && !container.record_exists()
            {
                found.push((container, lock));
            }
        }
        Ok(found)
    }

    fn directories(&self) -> Result<Vec<ContainerDirectory>, StoreError> {
        let containers = self.paths.containers();
        let entries = match fs::read_dir(&containers) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read directory", &containers)(error).into()),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("read directory", &containers))?;
            if let Some(id) = entry.file_name().to_str() {
                found.push(ContainerDirectory::new(self.paths.container(id)));
            }
        }
        Ok(found)
    }

    /// Finds a container by name, id, or an unambiguous beginning of its id.
    ///
    /// # Errors
    /// [`StoreError::NoContainer`], [`StoreError::Ambiguous`], or a record cannot be read.
    pub fn find(&self, text: &str) -> Result<(ContainerDirectory, Record), StoreError> {
        let missing = || StoreError::NoContainer(text.to_owned());
        if text.is_empty() || text.contains('/') || text.starts_with('.') {
            return Err(missing());
        }
        if let Some(id) = self.name_owner(text) {
            let container = ContainerDirectory::new(self.paths.container(&id));
            let record = container.record()?.ok_or_else(missing)?;
            return Ok((container, record));
        }
        let mut matching: Vec<ContainerDirectory> =
            self.directories()?.into_iter().filter(|c| c.id().starts_with(text)).collect();
        if let Some(exact) = matching.iter().position(|container| container.id() == text) {
            matching = vec![matching.swap_remove(exact)];
        }
        let ids: Vec<&str> = matching.iter().map(ContainerDirectory::id).collect();
        if ids.len() > 1 {
            return Err(StoreError::Ambiguous { text: text.to_owned(), ids: ids.join(", ") });
        }
        let container = matching.pop().ok_or_else(missing)?;
        let record = container.record()?.ok_or_else(missing)?;
        Ok((container, record))
    }

    /// Removes a container's files and its name. The caller holds its lock and has ended all users of the files. A
    /// second call is no error.
    ///
    /// # Errors
    /// A file cannot be removed. The others were removed; the record is the last.
    pub fn remove(&self, container: &ContainerDirectory, name: &str) -> Result<(), StoreError> {
        file::remove_tree(container.links())?;
        file::remove_tree(container.data())?;
        let _namespace = Lock::exclusive(&self.paths.namespace_lock())?;
        let link = self.paths.names().join(name);
        if fs::read_link(&link).is_ok_and(|target| target == Path::new(container.id())) {
            fs::remove_file(&link).map_err(io_error("remove", &link))?;
        }
        // Renamed first, so that a reader never sees a part of a directory.
        let grave = self.paths.namespace_directory().join(format!(".removed-{}", container.id()));
        match fs::rename(container.directory(), &grave) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error("remove", container.directory())(error).into()),
        }
        file::remove_tree(&grave)?;
        Ok(())
    }

    /// Removes the writable layers of containers of this state directory that no longer exist: after a reboot, which
    /// empties the state directory, or after a removal that was killed.
    ///
    /// # Errors
    /// A directory cannot be read or removed.
    pub fn remove_orphans(&self) -> Result<(), StoreError> {
        let root = self.paths.root.join("containers");
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error("read directory", &root)(error).into()),
        };
        let owner = rootfs::owner_mark(&self.paths);
        for entry in entries {
            let entry = entry.map_err(io_error("read directory", &root))?;
            let Some(id) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let ours = fs::read(entry.path().join(rootfs::OWNER)).is_ok_and(|mark| mark == owner);
            if ours && !self.paths.container(&id).directory.exists() {
                file::remove_tree(&entry.path())?;
            }
        }
        self.remove_graves()
    }

    fn remove_graves(&self) -> Result<(), StoreError> {
        let directory = self.paths.namespace_directory();
        let Ok(entries) = fs::read_dir(&directory) else { return Ok(()) };
        let graves: Vec<PathBuf> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(".removed-"))
            .map(|entry| entry.path())
            .collect();
        if graves.is_empty() {
            return Ok(());
        }
        let _namespace = Lock::exclusive(&self.paths.namespace_lock())?;
        for grave in graves {
            file::remove_tree(&grave)?;
        }
        Ok(())
    }
}

/// Draws a container's id: twelve hex digits, the length that other engines show.
pub fn random_id() -> Result<String, rustix::io::Errno> {
    let mut bytes = [0; 6];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(hex::encode(bytes))
}

/// Draws a name for an anonymous volume: 64 hex digits, as docker's.
///
/// # Errors
/// The kernel returned no random bytes.
pub fn random_name() -> Result<String, StoreError> {
    let parts = (0..6).map(|_| random_id()).collect::<Result<Vec<_>, _>>().map_err(StoreError::Random)?;
    Ok(parts.concat()[..64].to_owned())
}

#[cfg(test)]
mod tests;
