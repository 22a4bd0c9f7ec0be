//! Files written by `docker save`: a tar of configuration and layers with a `manifest.json`, from which an OCI
//! manifest is made.

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;

use super::ImageError;
use super::Progress;
use super::blobs::BlobDigest;
use super::blobs::Blobs;
use super::manifest;

/// Maximum number of files in the archive, which has two or three per layer.
const MOST_FILES: usize = 4096;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// Imports the only image of the archive into the store; returns the digest of the manifest made for it.
pub(super) fn import(
    root: &Path,
    blobs: &Blobs,
    file: &Path,
    progress: &dyn Progress,
) -> Result<BlobDigest, ImageError> {
    let name = file.display().to_string();
    let failed = |reason: String| ImageError::Manifest { name: name.clone(), reason };
    // Entries have no defined order and refer to each other, so they are unpacked into a temporary directory first.
    let parts = tempfile::tempdir_in(root.join("tmp")).map_err(|source| ImageError::Io {
        action: "create a directory in",
        path: root.join("tmp"),
        source,
    })?;
    let mut files = take_apart(file, parts.path()).map_err(|e| match e {
        Refused::Io(e) => ImageError::Io { action: "read", path: file.to_owned(), source: e },
        Refused::Content(reason) => failed(reason),
    })?;
    let manifest =
        files.remove("manifest.json").ok_or_else(|| failed("no manifest.json in it".to_owned()))?;
    let manifest = read(&manifest.path, &name)?;
    let saved: Vec<Saved> = serde_json::from_slice(&manifest).map_err(|e| failed(e.to_string()))?;
    let [image] = saved.as_slice() else {
        return Err(failed(format!("{} images in it instead of one", saved.len())));
    };
    let part = |path: &str| files.get(path).ok_or_else(|| failed(format!("{path} is not in it")));
    let config = part(&image.config)?;
    let mut layers = Vec::new();
    for path in &image.layers {
        let layer = part(path)?;
        let mut step = progress.step(&format!("copy {}", &layer.digest.hex()[..12]), Some(layer.size));
        ingest(blobs, layer)?;
        step.advance(layer.size);
        step.finish("copied");
        layers.push(descriptor("application/vnd.oci.image.layer.v1.tar", layer));
    }
    ingest(blobs, config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": layers,
    })
    .to_string();
    let digest = BlobDigest::of(manifest.as_bytes());
    blobs.ingest(&digest, manifest.len() as u64, &mut manifest.as_bytes())?;
    Ok(digest)
}

fn descriptor(media_type: &str, part: &Part) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": part.digest.to_string(), "size": part.size })
}

fn ingest(blobs: &Blobs, part: &Part) -> Result<(), ImageError> {
    let open = File::open(&part.path);
    let mut file =
        open.map_err(|source| ImageError::Io { action: "read", path: part.path.clone(), source })?;
    blobs.ingest(&part.digest, part.size, &mut file)
}

fn read(path: &Path, name: &str) -> Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Io { action: "read", path: path.to_owned(), source };
    let most = manifest::LARGEST_MANIFEST;
    if fs::metadata(path).map_err(failed)?.len() > most {
        return Err(ImageError::TooBig { what: format!("manifest.json of {name}"), most });
    }
    fs::read(path).map_err(failed)
}

struct Part {
    path: PathBuf,
    digest: BlobDigest,
    size: u64,
}

enum Refused {
    Io(std::io::Error),
    Content(String),
}

/// Copies every file of the archive to a numbered file of `into`. Names are only compared, never opened.
fn take_apart(file: &Path, into: &Path) -> Result<HashMap<String, Part>, Refused> {
    let mut archive = tar::Archive::new(File::open(file).map_err(Refused::Io)?);
    let mut files = HashMap::new();
    let mut links: Vec<(String, String)> = Vec::new();
    for entry in archive.entries().map_err(Refused::Io)? {
        let mut entry = entry.map_err(|e| Refused::Content(e.to_string()))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        if files.len() + links.len() >= MOST_FILES {
            return Err(Refused::Content(format!("more than {MOST_FILES} files in it")));
        }
        let kind = entry.header().entry_type();
        if kind.is_symlink() {
            // Old versions of docker link equal layers to each other: "../<id>/layer.tar".
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            let target = String::from_utf8_lossy(&target).trim_start_matches("../").to_owned();
            links.push((name, target));
            continue;
        }
        if !kind.is_file() {
            continue;
        }
        let path = into.join(files.len().to_string());
        let mut copy = File::create(&path).map_err(Refused::Io)?;
        let mut hasher = Sha256::new();
        let mut size = 0;
        let mut block = vec![0; 1 << 16];
        loop {
            let count = entry.read(&mut block).map_err(|e| Refused::Content(e.to_string()))?;
            if count == 0 {
                break;
            }
            hasher.update(&block[..count]);
            std::io::Write::write_all(&mut copy, &block[..count]).map_err(Refused::Io)?;
            size += count as u64;
        }
        let digest = format!("sha256:{}", hex::encode(hasher.finalize()));
        let digest = BlobDigest::parse(&digest).map_err(|e| Refused::Content(e.to_string()))?;
        files.insert(name, Part { path, digest, size });
    }
    for (name, target) in links {
        if let Some(Part { path, digest, size }) = files.get(&target) {
            let part = Part { path: path.clone(), digest: digest.clone(), size: *size };
            files.insert(name, part);
        }
    }
    Ok(files)
}
