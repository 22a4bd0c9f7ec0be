//! The image store: the names of images and their manifests and trees.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde::Serialize;

use super::ImageSource;
use super::Progress;
use super::PullOptions;
use super::archive;
use super::blobs::BlobDigest;
use super::blobs::Blobs;
use super::layout;
use super::manifest;
use super::manifest::Document;
use super::pull;
use super::tree;
use crate::store::file;
use crate::store::file::Lock;

/// Version of the record's form.
const VERSION: u64 = 1;

/// An image cannot be fetched, read or removed. Each error names the image or the object in it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The text is not the name of an image.
    #[error("image name {text:?}: {reason}")]
    Reference {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The text is not a sha256 digest.
    #[error("digest {0:?} is not sha256 and 64 hex digits")]
    Digest(String),
    /// A manifest, index or configuration is invalid.
    #[error("{name}: {reason}")]
    Manifest {
        /// Name or digest of the document.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The content of a blob does not match its digest.
    #[error("blob {digest} is damaged: {reason}")]
    Damaged {
        /// Digest of the blob.
        digest: String,
        /// The difference.
        reason: String,
    },
    /// An object exceeds its maximum size.
    #[error("{what} is larger than {most} bytes")]
    TooBig {
        /// The object.
        what: String,
        /// Maximum size in bytes.
        most: u64,
    },
    /// An entry of a layer is invalid.
    #[error("layer {layer}: {entry:?}: {reason}")]
    Layer {
        /// Digest of the layer.
        layer: String,
        /// The path of the entry.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A request to the registry failed.
    #[error("pull {name}: {reason}")]
    Registry {
        /// The reference.
        name: String,
        /// The registry's answer.
        reason: String,
    },
    /// An operation on the host's file system failed.
    #[error("{action} {path}")]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A record or a lock of the store cannot be used.
    #[error("image store: {0}")]
    Store(String),
    /// No image has this name.
    #[error("no image {0:?} (kiai images lists them)")]
    NotFound(String),
}

/// An image in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    version: u64,
    /// Name of the image.
    pub name: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Size of its layers in bytes, compressed.
    pub size: u64,
    /// Creation time according to the image's configuration (RFC 3339).
    pub created: Option<String>,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Digests of its layers, bottom first.
    pub layers: Vec<String>,
    config_digest: String,
}

/// The store.
pub struct ImageStore {
    root: PathBuf,
    blobs: Blobs,
}

impl ImageStore {
    /// Opens the store in `root`, and makes it if it does not exist.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        for name in ["blobs/sha256", "trees", "images", "tmp", "locks"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(|source| ImageError::Io { action: "create", path, source })?;
        }
        // Images contain setuid programs, which users of the host must not be able to start.
        let trees = root.join("trees");
        fs::set_permissions(&trees, fs::Permissions::from_mode(0o700)).map_err(|source| ImageError::Io {
            action: "close to others",
            path: trees,
            source,
        })?;
        Ok(Self { root: root.to_owned(), blobs: Blobs::new(root) })
    }

    /// Fetches an image from a registry and makes its tree. Blobs in the store are not fetched again.
    pub async fn pull(
        &self,
        reference: &oci_client::Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        let _shared = self.shared_lock()?;
        let manifest = pull::fetch(&self.blobs, reference, options, progress).await?;
        self.finish(&reference.whole(), &manifest, progress)
    }

    /// Imports an image from a directory or a file under `name`.
    pub fn import(
        &self,
        source: &ImageSource,
        name: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        let _shared = self.shared_lock()?;
        let manifest = match source {
            ImageSource::Layout { directory, tag } => {
                layout::import(&self.blobs, directory, tag.as_deref(), progress)?
            }
            ImageSource::Archive(file) => archive::import(&self.root, &self.blobs, file, progress)?,
            ImageSource::Registry(reference) => {
                let reason = "a registry's image is pulled, not imported".to_owned();
                return Err(ImageError::Reference { text: reference.whole(), reason });
            }
        };
        self.finish(name.unwrap_or(&source.name()), &manifest, progress)
    }

    /// Makes the tree of an image whose blobs are all in the store, then writes the record of its name.
    fn finish(&self, name: &str, digest: &BlobDigest, progress: &dyn Progress) -> Result<Image, ImageError> {
        let bytes = self.blobs.read(digest, manifest::LARGEST_MANIFEST)?;
        let Document::Manifest(found) = manifest::parse(&digest.to_string(), &bytes)? else {
            return Err(ImageError::Manifest { name: digest.to_string(), reason: "an index".to_owned() });
        };
        let config_digest = BlobDigest::parse(found.config().digest().as_ref())?;
        let config = self.blobs.read(&config_digest, manifest::LARGEST_MANIFEST)?;
        let config = manifest::parse_config(&config_digest.to_string(), &config, found.layers().len())?;
        let image = Image {
            version: VERSION,
            name: name.to_owned(),
            digest: digest.to_string(),
            size: found.layers().iter().map(|l| l.size()).fold(0, u64::saturating_add),
            created: config.created().clone(),
            layers: found.layers().iter().map(|l| l.digest().to_string()).collect(),
            config,
            config_digest: config_digest.to_string(),
        };
        tree::make(&self.root, &self.blobs, &image, progress)?;
        // Several processes may write the same name concurrently.
        let names = self.root.join("locks/names");
        let _lock = Lock::exclusive(&names).map_err(|e| ImageError::Store(e.to_string()))?;
        file::write_json(&self.record(name), &image).map_err(|e| ImageError::Store(e.to_string()))?;
        Ok(image)
    }

    fn record(&self, name: &str) -> PathBuf {
        // A name has slashes and may be longer than a file name, so the file is named differently and the record has
        // the name.
        self.root.join("images").join(format!("{}.json", BlobDigest::of(name.as_bytes()).hex()))
    }

    /// Finds an image by name, by short name (as docker completes it), or by at least 6 digits of its digest.
    pub fn get(&self, text: &str) -> Result<Option<Image>, ImageError> {
        let mut names = vec![text.to_owned()];
        if let Ok(source) = ImageSource::parse(text) {
            names.push(source.name());
        }
        for name in names {
            if let Some(image) = self.read_record(&self.record(&name))? {
                return Ok(Some(image));
            }
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() < 6 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let found = self.list()?.into_iter().find(|image| image.digest[7..].starts_with(digits));
        Ok(found)
    }

    fn read_record(&self, path: &Path) -> Result<Option<Image>, ImageError> {
        let image: Option<Image> = file::read_json(path).map_err(|e| ImageError::Store(e.to_string()))?;
        match image {
            Some(image) if image.version != VERSION => {
                Err(ImageError::Store(format!("{} has version {}", path.display(), image.version)))
            }
            other => Ok(other),
        }
    }

    /// All images, ordered by name.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let directory = self.root.join("images");
        let entries = fs::read_dir(&directory).map_err(|source| ImageError::Io {
            action: "list",
            path: directory.clone(),
            source,
        })?;
        let mut images = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json")
                && let Some(image) = self.read_record(&path)?
            {
                images.push(image);
            }
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// The directories of an image's files, topmost first, for an overlay. They exist, because the name is written
    /// after them.
    pub fn layers(&self, image: &Image) -> Result<Vec<PathBuf>, ImageError> {
        Ok(vec![tree::path(&self.root, image)])
    }

    /// Removes an image, and deletes the blobs and trees that no other image needs. The caller ensures that no
    /// container uses it.
    pub fn remove(&self, text: &str) -> Result<Image, ImageError> {
        let _alone = self.exclusive_lock()?;
        let image = self.get(text)?.ok_or_else(|| ImageError::NotFound(text.to_owned()))?;
        let record = self.record(&image.name);
        fs::remove_file(&record).map_err(|source| ImageError::Io {
            action: "remove",
            path: record.clone(),
            source,
        })?;
        self.sweep()?;
        Ok(image)
    }

    /// Deletes every blob and tree that no image refers to. The caller holds the exclusive lock.
    fn sweep(&self) -> Result<(), ImageError> {
        let images = self.list()?;
        let used: BTreeSet<BlobDigest> = images
            .iter()
            .flat_map(|image| image.layers.iter().chain([&image.digest, &image.config_digest]))
            .filter_map(|digest| BlobDigest::parse(digest).ok())
            .collect();
        for digest in self.blobs.list() {
            if !used.contains(&digest) {
                self.blobs.remove(&digest);
            }
        }
        tree::sweep(&self.root, &images)?;
        for entry in fs::read_dir(self.root.join("tmp")).into_iter().flatten().flatten() {
            let path = entry.path();
            if fs::remove_file(&path).is_err() {
                file::remove_tree(&path).map_err(|e| ImageError::Store(e.to_string()))?;
            }
        }
        Ok(())
    }

    /// The lock for additions, shared by several processes.
    fn shared_lock(&self) -> Result<fs::File, ImageError> {
        let path = self.root.join("locks/store");
        let failed = |source| ImageError::Io { action: "lock", path: path.clone(), source };
        let lock = fs::File::options().create(true).append(true).open(&path).map_err(failed)?;
        lock.lock_shared().map_err(failed)?;
        Ok(lock)
    }

    /// The lock for deletions.
    fn exclusive_lock(&self) -> Result<Lock, ImageError> {
        Lock::exclusive(&self.root.join("locks/store")).map_err(|e| ImageError::Store(e.to_string()))
    }
}
