//! An image's layers applied one over the other into one directory.
//!
//! A layer has no directory of its own, because its entries may lie behind symbolic links of the layers below (`bin/x`
//! where `/bin` links to `usr/bin`), so it can be applied on top of those only. Two images with the same chain of
//! layers share a tree.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;

use super::Image;
use super::ImageError;
use super::Progress;
use super::blobs::BlobDigest;
use super::blobs::Blobs;
use super::unpack;
use crate::store::file;
use crate::store::file::Lock;

/// The name of an image's tree, computed from the digests of its layers in their order.
fn chain(image: &Image) -> BlobDigest {
    BlobDigest::of(image.config.rootfs().diff_ids().join("\n").as_bytes())
}

pub(super) fn path(root: &Path, image: &Image) -> PathBuf {
    root.join("trees").join(chain(image).hex()).join("fs")
}

/// Makes the tree if it does not exist: in a temporary directory, which is renamed when it is complete.
pub(super) fn make(
    root: &Path,
    blobs: &Blobs,
    image: &Image,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let chain = chain(image);
    let place = root.join("trees").join(chain.hex());
    let lock = root.join("locks").join(format!("tree-{}", chain.hex()));
    let _lock = Lock::exclusive(&lock).map_err(|e| ImageError::Store(e.to_string()))?;
    if place.exists() {
        return Ok(());
    }
    let making = root.join("tmp").join(format!("tree-{}", chain.hex()));
    let result = fill(&making, blobs, image, progress).and_then(|()| {
        // Written to disk before the rename: after a power failure no incomplete tree must have the name.
        File::open(&making)
            .and_then(|directory| Ok(rustix::fs::syncfs(directory)?))
            .map_err(|source| ImageError::Io { action: "write out", path: making.clone(), source })?;
        fs::rename(&making, &place).map_err(|source| ImageError::Io {
            action: "rename to",
            path: place.clone(),
            source,
        })
    });
    if result.is_err() {
        // The first error is returned, not that of the removal.
        let _ = file::remove_tree(&making);
    }
    result
}

fn fill(making: &Path, blobs: &Blobs, image: &Image, progress: &dyn Progress) -> Result<(), ImageError> {
    // The remains of a killed process.
    file::remove_tree(making).map_err(|e| ImageError::Store(e.to_string()))?;
    let tree = making.join("fs");
    fs::create_dir_all(&tree).map_err(|source| ImageError::Io {
        action: "create",
        path: tree.clone(),
        source,
    })?;
    for (layer, diff_id) in image.layers.iter().zip(image.config.rootfs().diff_ids()) {
        let digest = BlobDigest::parse(layer)?;
        let blob = blobs.path(&digest);
        let failed = |source| ImageError::Io { action: "read", path: blob.clone(), source };
        let file = File::open(&blob).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut step = progress.step(&format!("unpack {}", &digest.hex()[..12]), None);
        let unpacked = unpack::layer(&tree, layer, BufReader::new(file), size, diff_id)?;
        step.advance(unpacked);
        step.finish("unpacked");
    }
    Ok(())
}

/// Deletes the trees that no image uses.
pub(super) fn sweep(root: &Path, images: &[Image]) -> Result<(), ImageError> {
    let used: BTreeSet<String> = images.iter().map(|image| chain(image).hex().to_owned()).collect();
    for entry in fs::read_dir(root.join("trees")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !used.contains(&name) {
            file::remove_tree(&entry.path()).map_err(|e| ImageError::Store(e.to_string()))?;
            let _ = fs::remove_file(root.join("locks").join(format!("tree-{name}")));
        }
    }
    Ok(())
}
