//! Images made on the spot, well-formed and not: an OCI layout (image-spec 1.1) of given layers.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;
use tar::EntryType;
use tar::Header;

/// One entry of a layer, with nothing about it checked.
pub struct Entry<'a> {
    /// The path as it stands in the archive.
    pub path: &'a str,
    /// What it is.
    pub kind: EntryType,
    /// Content, or what a link points to.
    pub content: &'a str,
}

impl<'a> Entry<'a> {
    /// A regular file.
    pub fn file(path: &'a str, content: &'a str) -> Entry<'a> {
        Entry { path, kind: EntryType::Regular, content }
    }

    /// A symbolic link.
    pub fn symlink(path: &'a str, target: &'a str) -> Entry<'a> {
        Entry { path, kind: EntryType::Symlink, content: target }
    }

    /// A hard link.
    pub fn hard_link(path: &'a str, target: &'a str) -> Entry<'a> {
        Entry { path, kind: EntryType::Link, content: target }
    }
}

/// A layer: a tar archive of `entries`.
pub fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_gnu();
        let bytes = entry.path.as_bytes();
        // The builder would refuse a path that climbs.
        header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
        header.set_entry_type(entry.kind);
        header.set_mode(0o644);
        let link = matches!(entry.kind, EntryType::Symlink | EntryType::Link);
        let content = if link { "" } else { entry.content };
        if link {
            header.as_old_mut().linkname[..entry.content.len()].copy_from_slice(entry.content.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Writes an image of `layers` (bottom first, stored gzipped) to the folder `layout`; the digest of each layer's
/// blob.
pub fn write_layout(layout: &Path, layers: &[Vec<u8>]) -> Vec<String> {
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let (mut descriptors, mut diff_ids, mut digests) = (Vec::new(), Vec::new(), Vec::new());
    for layer in layers {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(layer).unwrap();
        let blob = gzip.finish().unwrap();
        diff_ids.push(json!(digest(layer)));
        digests.push(digest(&blob));
        descriptors.push(store(layout, "application/vnd.oci.image.layer.v1.tar+gzip", &blob));
    }
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = store(layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": descriptors });
    let mut manifest = store(layout, media_type, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    digests
}

/// The file a blob is in.
pub fn blob(layout: &Path, digest: &str) -> std::path::PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn store(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = digest(bytes);
    fs::write(blob(layout, &digest), bytes).unwrap();
    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
}

/// `sha256:` and the digest of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
