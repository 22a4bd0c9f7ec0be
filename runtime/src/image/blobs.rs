//! Blobs by digest: each is written once, verified, and shared by all processes that use the store.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use sha2::Digest;
use sha2::Sha256;

use super::ImageError;
use crate::store::file::Lock;

/// The directory of blobs.
#[derive(Clone)]
pub(super) struct Blobs {
    root: PathBuf,
}

/// A valid sha256 digest: 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct BlobDigest(String);

impl BlobDigest {
    /// Reads "sha256:…"; any other algorithm is refused.
    pub(super) fn parse(text: &str) -> Result<Self, ImageError> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(hex.to_owned()))
        } else {
            Err(ImageError::Digest(text.chars().take(100).collect()))
        }
    }

    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(bytes)))
    }

    pub(super) fn hex(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl Blobs {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn path(&self, digest: &BlobDigest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Whether the store has the blob. It was verified when it was stored.
    pub(super) fn has(&self, digest: &BlobDigest) -> bool {
        self.path(digest).exists()
    }

    /// Takes the lock of this blob: waits until no other process fetches it.
    pub(super) fn lock(&self, digest: &BlobDigest) -> Result<Lock, ImageError> {
        let path = self.root.join("locks").join(digest.hex());
        Lock::exclusive(&path).map_err(|e| ImageError::Store(e.to_string()))
    }

    /// Reads a blob of at most `most` bytes.
    pub(super) fn read(&self, digest: &BlobDigest, most: u64) -> Result<Vec<u8>, ImageError> {
        let path = self.path(digest);
        let failed = |source| ImageError::Io { action: "read", path: path.clone(), source };
        let mut bytes = Vec::new();
        File::open(&path).and_then(|f| f.take(most + 1).read_to_end(&mut bytes)).map_err(failed)?;
        if bytes.len() as u64 > most {
            return Err(ImageError::TooBig { what: digest.to_string(), most });
        }
        Ok(bytes)
    }

    /// The file of a partial blob. It is kept after an interruption, so that the next attempt resumes it.
    pub(super) fn partial(&self, digest: &BlobDigest) -> PathBuf {
        self.root.join("tmp").join(format!("{}.partial", digest.hex()))
    }

    /// Verifies a partial blob and moves it into the store. A damaged one is deleted.
    pub(super) fn accept(&self, digest: &BlobDigest, size: u64) -> Result<(), ImageError> {
        let partial = self.partial(digest);
        let failed = |source| ImageError::Io { action: "verify", path: partial.clone(), source };
        let mut file = File::open(&partial).map_err(failed)?;
        let mut hasher = Sha256::new();
        let length = io::copy(&mut file, &mut hasher).map_err(failed)?;
        let found = hex::encode(hasher.finalize());
        if length != size || found != digest.hex() {
            // It cannot be resumed either.
            let _ = fs::remove_file(&partial);
            let reason = if length == size {
                format!("its content has digest sha256:{found}")
            } else {
                format!("it has {length} bytes instead of {size}")
            };
            return Err(ImageError::Damaged { digest: digest.to_string(), reason });
        }
        file.sync_all().map_err(failed)?;
        let path = self.path(digest);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        fs::rename(&partial, &path).map_err(failed)
    }

    /// Stores a blob from an untrusted reader.
    pub(super) fn ingest(
        &self,
        digest: &BlobDigest,
        size: u64,
        from: &mut dyn Read,
    ) -> Result<(), ImageError> {
        let _lock = self.lock(digest)?;
        if self.has(digest) {
            return Ok(());
        }
        let partial = self.partial(digest);
        let failed = |source| ImageError::Io { action: "write", path: partial.clone(), source };
        if let Some(parent) = partial.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        let mut file = File::create(&partial).map_err(failed)?;
        // One byte beyond the announced size shows that the blob is too long.
        io::copy(&mut from.take(size.saturating_add(1)), &mut file).map_err(failed)?;
        file.flush().map_err(failed)?;
        self.accept(digest, size)
    }

    pub(super) fn remove(&self, digest: &BlobDigest) {
        // Already deleted.
        let _ = fs::remove_file(self.path(digest));
        let _ = fs::remove_file(self.root.join("locks").join(digest.hex()));
    }

    /// All blobs of the store.
    pub(super) fn list(&self) -> Vec<BlobDigest> {
        let directory = self.root.join("blobs/sha256");
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| BlobDigest::parse(&format!("sha256:{}", entry.file_name().to_str()?)).ok())
            .collect()
    }
}
