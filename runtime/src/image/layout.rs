//! OCI image layouts (image-spec 1.1 `image-layout.md`): a directory with `oci-layout`, `index.json`, `blobs/`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use oci_spec::image::Descriptor;
use oci_spec::image::ImageIndex;

use super::ImageError;
use super::Progress;
use super::blobs::BlobDigest;
use super::blobs::Blobs;
use super::manifest;
use super::manifest::Document;

/// Annotation that names an image in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Copies an image's blobs into the store; returns the digest of its manifest.
pub(super) fn import(
    blobs: &Blobs,
    directory: &Path,
    tag: Option<&str>,
    progress: &dyn Progress,
) -> Result<BlobDigest, ImageError> {
    let path = directory.join("index.json");
    let name = path.display().to_string();
    let bytes = read(&path)?;
    let Document::Index(index) = manifest::parse(&name, &bytes)? else {
        return Err(ImageError::Manifest { name, reason: "not an index".to_owned() });
    };
    let mut descriptor = select(&name, &index, tag)?;
    for _ in 0..manifest::DEEPEST_INDEX {
        let digest = BlobDigest::parse(descriptor.digest().as_ref())?;
        copy(blobs, directory, &descriptor)?;
        let bytes = blobs.read(&digest, manifest::LARGEST_MANIFEST)?;
        match manifest::parse(&digest.to_string(), &bytes)? {
            Document::Index(index) => descriptor = manifest::choose(&digest.to_string(), &index)?,
            Document::Manifest(found) => {
                copy(blobs, directory, found.config())?;
                for layer in found.layers() {
                    let what =
                        format!("copy {}", layer.digest().digest().chars().take(12).collect::<String>());
                    let mut step = progress.step(&what, Some(layer.size()));
                    copy(blobs, directory, layer)?;
                    step.advance(layer.size());
                    step.finish("copied");
                }
                return Ok(digest);
            }
        }
    }
    Err(ImageError::Manifest { name, reason: "indices of indices, too deep".to_owned() })
}

fn select(name: &str, index: &ImageIndex, tag: Option<&str>) -> Result<Descriptor, ImageError> {
    let named = |entry: &&Descriptor| {
        entry.annotations().as_ref().and_then(|all| all.get(REF_NAME)).map(String::as_str) == tag
    };
    let failed = |reason: String| ImageError::Manifest { name: name.to_owned(), reason };
    match (tag, index.manifests().as_slice()) {
        (_, []) => Err(failed("no image in it".to_owned())),
        (None, [only]) => Ok(only.clone()),
        (None, _) => {
            manifest::choose(name, index).map_err(|_| failed("several images: name a tag".to_owned()))
        }
        (Some(tag), all) => {
            all.iter().find(named).cloned().ok_or_else(|| failed(format!("no image with tag {tag:?}")))
        }
    }
}

/// Copies one blob into the store and verifies it.
fn copy(blobs: &Blobs, directory: &Path, descriptor: &Descriptor) -> Result<(), ImageError> {
    let digest = BlobDigest::parse(descriptor.digest().as_ref())?;
    if blobs.has(&digest) {
        return Ok(());
    }
    let path = directory.join("blobs/sha256").join(digest.hex());
    let mut file =
        File::open(&path).map_err(|source| ImageError::Io { action: "read", path: path.clone(), source })?;
    blobs.ingest(&digest, descriptor.size(), &mut file)
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Io { action: "read", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let most = manifest::LARGEST_MANIFEST;
    File::open(path).and_then(|f| f.take(most + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(ImageError::TooBig { what: path.display().to_string(), most });
    }
    Ok(bytes)
}
