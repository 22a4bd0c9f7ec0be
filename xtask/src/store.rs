//! An image store of `kiai` that has the test images already: importing them under emulation takes half a minute, and
//! every lab would do it again.
//!
//! `kiai import` fills it, so it is what a user's store is. It is made again when the code that writes stores changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use walkdir::WalkDir;

use crate::lab::disk;
use crate::{build, cache, image, step, workspace};

const RECIPE: u32 = 1;
/// The code that says what a store looks like.
const WRITERS: [&str; 2] = ["runtime/src/image", "runtime/src/store"];
/// Room on the disk for what containers write, MiB. The file is sparse.
const ROOM_MIB: u64 = 8 * 1024;

/// An ext4 image of a store whose images are named as if the folder of the test images were `folder`.
pub(crate) fn artifact(folder: &str) -> Result<PathBuf> {
    let images = image::artifact()?;
    let mut inputs =
        cache::Inputs::new(RECIPE).text("images", &images.folder().to_string_lossy()).text("folder", folder);
    for (path, content) in sources()? {
        inputs = inputs.bytes(&path, &content);
    }
    let artifact = cache::artifact("store", &inputs, |made| {
        let root = made.join("root");
        fill(&root, &images.folder(), folder)?;
        disk::format_with_room(&root, &made.join("store.ext4"), ROOM_MIB)?;
        cache::remove_tree(&root)
    })?;
    Ok(artifact.join("store.ext4"))
}

/// Imports the test images in `from` into the store at `root`, under the names they have when they lie in `folder`.
pub(crate) fn fill(root: &Path, from: &Path, folder: &str) -> Result<()> {
    let kiai = build::kiai()?;
    let state = cache::scratch()?;
    for (scheme, image) in [("oci", "busybox"), ("oci", "debian"), ("docker-archive", "debian.tar")] {
        let mut import = Command::new(&kiai);
        import.env("KIAI_ROOT", root).env("KIAI_STATE", state.path());
        import.arg("import").arg(format!("{scheme}:{}", from.join(image).display()));
        import.arg(format!("{scheme}:{folder}/{image}"));
        step::run(&format!("importing the test image {image}"), &mut import)?;
    }
    Ok(())
}

/// The files whose change may change what a store looks like, sorted.
fn sources() -> Result<Vec<(String, Vec<u8>)>> {
    let mut sources = Vec::new();
    for entry in WRITERS.iter().flat_map(|folder| WalkDir::new(workspace::path(folder))) {
        let entry = entry?;
        if entry.file_type().is_file() {
            let content = fs::read(entry.path()).with_context(|| entry.path().display().to_string())?;
            let path = entry.path().strip_prefix(workspace::root())?;
            sources.push((path.to_string_lossy().into_owned(), content));
        }
    }
    sources.sort();
    Ok(sources)
}
