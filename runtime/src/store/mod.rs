//! What outlives a command: one directory a container, under the state directory, and the layers a container
//! writes to, under the root directory.
//!
//! ```text
//! STATE/NAMESPACE/lock                      held while a name is given or taken back
//! STATE/NAMESPACE/names/NAME                symbolic link to an id; making it is what makes a name unique
//! STATE/NAMESPACE/containers/ID/lock        held by whoever changes the container
//! STATE/NAMESPACE/containers/ID/record.json the record, replaced whole
//! STATE/NAMESPACE/containers/ID/bundle/     the OCI bundle; the shim adds its own files
//! STATE/l/ID/                               short links to layers, when an image has very many
//! ROOT/containers/ID/{upper,work}           what the container wrote
//! ROOT/volumes/NAME/                        named volumes
//! ```
//!
//! The state directory is on a tmpfs and is gone after a reboot, as is everything it describes; what a reboot
//! leaves under ROOT/containers is an orphan, and [`Store::remove_orphans`] takes it away.
//!
//! Lock order: namespace, then container. It must not know: shims, networks, images, the CLI's words.

pub mod container;
pub mod file;
pub mod layers;
pub mod paths;
pub mod record;
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

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read, written or locked.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another container has the name.
    #[error("the name {name:?} is taken by container {id}; remove it (kiai rm {name}) or choose another")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// No container answers to the text.
    #[error("no such container: {0}")]
    NoContainer(String),
    /// Several containers do.
    #[error("{text:?} is the beginning of several containers' ids: {ids}")]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// Who answers.
        ids: String,
    },
    /// The kernel gave no random bytes.
    #[error("cannot draw a container id")]
    Random(#[source] rustix::io::Errno),
}

/// The containers of one namespace.
#[derive(Debug, Clone)]
pub struct Store {
    paths: Paths,
}

impl Store {
    /// The store at these paths; directories are made when first written to.
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }

    /// Where things are.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Makes a container's directory, gives it `name`, and returns it locked. Its record is not yet written:
    /// until it is, no other command sees the container.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`]; nothing is left behind on any error.
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
                // Nobody else has seen the directory yet: the error that counts is the first one.
                let _ = fs::remove_dir_all(container.directory());
                Err(error)
            }
        }
    }

    /// Who has a name, unless that container is gone.
    fn name_owner(&self, name: &str) -> Option<String> {
        let id = fs::read_link(self.paths.names().join(name)).ok()?.to_str()?.to_owned();
        self.paths.container(&id).directory.exists().then_some(id)
    }

    /// Points the name at the id. The caller holds the namespace lock and knows the name is free.
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

    /// Every container that has a record, oldest first. A container that is being made by another command and
    /// has no record yet is passed over; one whose record cannot be read is an error that names it.
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

    /// Directories whose maker died before it wrote a record: nobody holds their lock.
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

    /// Finds a container by name, id, or the beginning of an id that no other shares.
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

    /// Takes a container's files and name away. The caller holds its lock and has ended everything that used
    /// them. Doing it twice is no error.
    ///
    /// # Errors
    /// Something cannot be removed; what could be is gone, and the record goes last.
    pub fn remove(&self, container: &ContainerDirectory, name: &str) -> Result<(), StoreError> {
        file::remove_tree(container.links())?;
        file::remove_tree(container.data())?;
        let _namespace = Lock::exclusive(&self.paths.namespace_lock())?;
        let link = self.paths.names().join(name);
        if fs::read_link(&link).is_ok_and(|target| target == Path::new(container.id())) {
            fs::remove_file(&link).map_err(io_error("remove", &link))?;
        }
        // First out of sight, then away: a reader never meets half a directory.
        let grave = self.paths.namespace_directory().join(format!(".removed-{}", container.id()));
        match fs::rename(container.directory(), &grave) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error("remove", container.directory())(error).into()),
        }
        file::remove_tree(&grave)?;
        Ok(())
    }

    /// Takes away what containers of this state directory wrote and nobody will read again: a reboot emptied
    /// the state directory, or a command was killed in the middle of a removal.
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

/// Twelve hex digits: what people are used to seeing of a container's id, and here the whole of it.
pub fn random_id() -> Result<String, rustix::io::Errno> {
    let mut bytes = [0; 6];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests;
