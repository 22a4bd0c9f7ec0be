//! Manifests and indices: parsed with bounds, and the image for this platform chosen (OCI image-spec 1.1).

use oci_spec::image::Arch;
use oci_spec::image::Descriptor;
use oci_spec::image::ImageConfiguration;
use oci_spec::image::ImageIndex;
use oci_spec::image::ImageManifest;
use oci_spec::image::Os;

use super::ImageError;

/// Maximum size of a manifest or index, the same as that of registries.
pub(super) const LARGEST_MANIFEST: u64 = 4 << 20;
/// Maximum number of layers of an image; that of docker is 127.
const MOST_LAYERS: usize = 512;
/// Maximum depth of indices that refer to indices.
pub(super) const DEEPEST_INDEX: usize = 4;

/// A document that a descriptor names.
pub(super) enum Document {
    Manifest(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

/// Parses a document by its content, as media types are optional: an index has `manifests`, a manifest `layers`.
pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Document, ImageError> {
    let failed = |reason: String| ImageError::Manifest { name: name.to_owned(), reason };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| failed(e.to_string()))?;
    if value.get("manifests").is_some() {
        let index = serde_json::from_value(value).map_err(|e| failed(e.to_string()))?;
        return Ok(Document::Index(Box::new(index)));
    }
    let manifest: ImageManifest = serde_json::from_value(value).map_err(|e| failed(e.to_string()))?;
    if manifest.layers().len() > MOST_LAYERS {
        return Err(failed(format!("{} layers, at most {MOST_LAYERS}", manifest.layers().len())));
    }
    Ok(Document::Manifest(Box::new(manifest)))
}

/// The entry of an index for linux/amd64; an entry without a platform is accepted if it is the only one.
pub(super) fn choose(name: &str, index: &ImageIndex) -> Result<Descriptor, ImageError> {
    let all = index.manifests();
    let ours = all.iter().find(|entry| {
        entry.platform().as_ref().is_some_and(|p| *p.os() == Os::Linux && *p.architecture() == Arch::Amd64)
    });
    let only = || all.first().filter(|entry| all.len() == 1 && entry.platform().is_none());
    ours.or_else(only).cloned().ok_or_else(|| ImageError::Manifest {
        name: name.to_owned(),
        reason: "no image for linux/amd64 in it".to_owned(),
    })
}

/// The configuration of an image with `layers` layers.
pub(super) fn parse_config(
    name: &str,
    bytes: &[u8],
    layers: usize,
) -> Result<ImageConfiguration, ImageError> {
    let failed = |reason: String| ImageError::Manifest { name: name.to_owned(), reason };
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(|e| failed(e.to_string()))?;
    let expected = config.rootfs().diff_ids().len();
    if expected != layers {
        return Err(failed(format!("{layers} layers in the manifest, {expected} in the configuration")));
    }
    Ok(config)
}
