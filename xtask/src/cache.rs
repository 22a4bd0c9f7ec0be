//! Artifacts that are made once: `$KIAI_CACHE/<kind>/<hash of all inputs>/`, by default below `~/.cache/kiai`.
//!
//! A folder that has its final name is complete: it is made under another name and renamed. Two processes that want
//! the same artifact do not make it twice: the second waits for the first's lock. A killed process leaves nothing
//! that the next one would mistake for a result.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::step;

/// How many artifacts of a kind are kept. Several checkouts may each use another.
const KEPT: usize = 8;

/// The folder of all artifacts.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into()));
        env::var_os("KIAI_CACHE").map_or_else(|| home().join(".cache/kiai"), PathBuf::from)
    })
}

/// Everything an artifact depends on, hashed as it is named.
pub(crate) struct Inputs(Sha256);

impl Inputs {
    /// `recipe` is a number in the code that makes the artifact, raised when that code changes what comes out.
    pub(crate) fn new(recipe: u32) -> Self {
        Self(Sha256::new()).text("recipe", &recipe.to_string())
    }

    /// One input: its name and its content.
    pub(crate) fn text(self, name: &str, content: &str) -> Self {
        self.bytes(name, content.as_bytes())
    }

    /// One input: its name and its content.
    pub(crate) fn bytes(mut self, name: &str, content: &[u8]) -> Self {
        for part in [name.as_bytes(), content] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    fn hash(&self) -> String {
        hex::encode(&self.0.clone().finalize()[..10])
    }
}

/// The artifact of `kind` made from `inputs`: at once if it is there, else made by `make` in the folder it is given.
pub(crate) fn artifact(
    kind: &str,
    inputs: &Inputs,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let hash = inputs.hash();
    let folder = root().join(kind);
    let done = folder.join(&hash);
    if done.is_dir() {
        mark_used(&done)?;
        return Ok(done);
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let lock = File::create(folder.join(format!("{hash}.lock")))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        step::say(&format!("waiting for another process that makes the same {kind}"));
        flock(&lock, FlockOperation::LockExclusive)?;
    }
    if done.is_dir() {
        return Ok(done);
    }
    // The lock is held, so no other process makes it: an existing one is the remains of a killed process.
    let unfinished = folder.join(format!("{hash}.unfinished"));
    remove_tree(&unfinished)?;
    fs::create_dir(&unfinished)?;
    make(&unfinished)?;
    fs::rename(&unfinished, &done)?;
    mark_used(&done)?;
    forget_old(&folder)?;
    Ok(done)
}

/// An artifact's own time is when it was last asked for.
fn mark_used(artifact: &Path) -> Result<()> {
    File::open(artifact)?.set_modified(SystemTime::now()).context("marking an artifact as used")
}

/// Removes what has not been asked for the longest: every change of an input leaves an artifact behind.
fn forget_old(folder: &Path) -> Result<()> {
    let mut artifacts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && path.extension().is_none() {
            artifacts.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    artifacts.sort();
    for (_, artifact) in artifacts.iter().rev().skip(KEPT) {
        remove_tree(artifact)?;
    }
    Ok(())
}

/// Removes a folder and all in it, if it is there.
pub(crate) fn remove_tree(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// A folder for the life of this process, on the disk of the cache, so that files move and link into it for nothing.
/// What processes that were killed left behind goes first.
pub(crate) fn scratch() -> Result<tempfile::TempDir> {
    let folder = root().join("tmp");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next()).unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            remove_tree(&entry.path())?;
        }
    }
    let prefix = format!("{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(&folder).context("making a temporary folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_the_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..KEPT + 2 {
            let artifact = folder.path().join(number.to_string());
            fs::create_dir(&artifact).unwrap();
            let age = std::time::Duration::from_secs(number as u64);
            File::open(&artifact).unwrap().set_modified(SystemTime::now() - age).unwrap();
        }
        forget_old(folder.path()).unwrap();
        for number in 0..KEPT + 2 {
            assert_eq!(folder.path().join(number.to_string()).exists(), number < KEPT, "{number}");
        }
    }

    #[test]
    fn a_hash_depends_on_every_input_and_its_name() {
        let hashes = [
            Inputs::new(1).text("a", "b").hash(),
            Inputs::new(2).text("a", "b").hash(),
            Inputs::new(1).text("a", "c").hash(),
            Inputs::new(1).text("ab", "").hash(),
            Inputs::new(1).text("a", "b").text("", "").hash(),
        ];
        let distinct: std::collections::BTreeSet<_> = hashes.iter().collect();
        assert_eq!(distinct.len(), hashes.len());
        assert_eq!(hashes[0], Inputs::new(1).text("a", "b").hash());
    }
}
