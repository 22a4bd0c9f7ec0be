//! Writes OCI image layouts (OCI image-spec 1.0: image-layout.md, manifest.md, config.md).
//!
//! Layers come as tar files and are stored with gzip, as registries serve them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Images are the same whenever they are made.
const CREATED: &str = "2026-01-01T00:00:00Z";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Writes a layout with one image, called `tag`, made of `layers` from the lowest up.
pub(crate) fn write(layout: &Path, tag: &str, layers: &[PathBuf], command: &[&str]) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in layers {
        diff_ids.push(digest(layer)?);
        descriptors.push(add_layer(&blobs, layer)?);
    }
    let history: Vec<Value> =
        layers.iter().map(|_| json!({"created": CREATED, "created_by": "cargo xtask"})).collect();
    let config = json!({
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": [PATH], "Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    });
    let config = add_json(&blobs, CONFIG, &config)?;
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors});
    let mut manifest = add_json(&blobs, MANIFEST, &manifest)?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    manifest["platform"] = json!({"architecture": "amd64", "os": "linux"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

fn add_layer(blobs: &Path, layer: &Path) -> Result<Value> {
    let packed = blobs.join("packing");
    let status = Command::new("gzip")
        .args(["--no-name", "--stdout"])
        .stdin(File::open(layer)?)
        .stdout(Stdio::from(File::create(&packed)?))
        .status()
        .context("gzip")?;
    ensure!(status.success(), "gzip of {} ended with {status}", layer.display());
    let digest = digest(&packed)?;
    let size = fs::metadata(&packed)?.len();
    fs::rename(&packed, blobs.join(name(&digest)))?;
    Ok(json!({"mediaType": LAYER, "digest": digest, "size": size}))
}

fn add_json(blobs: &Path, media_type: &str, content: &Value) -> Result<Value> {
    let bytes = serde_json::to_vec(content)?;
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    fs::write(blobs.join(name(&digest)), &bytes)?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
}

fn digest(file: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(file)?, &mut hash).with_context(|| file.display().to_string())?;
    Ok(format!("sha256:{}", hex::encode(hash.finalize())))
}

fn name(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_names_blobs_that_are_there_with_the_size_and_digest_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let layer = folder.path().join("layer.tar");
        fs::write(&layer, "not really a tar, and that is no matter here").unwrap();
        let layout = folder.path().join("layout");
        write(&layout, "v1", std::slice::from_ref(&layer), &["sh"]).unwrap();

        let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |descriptor: &Value| {
            let path = layout.join("blobs/sha256").join(name(descriptor["digest"].as_str().unwrap()));
            assert_eq!(fs::metadata(&path).unwrap().len(), descriptor["size"].as_u64().unwrap());
            assert_eq!(digest(&path).unwrap(), descriptor["digest"].as_str().unwrap());
            path
        };
        let index = read(&layout.join("index.json"));
        let manifest = read(&blob(&index["manifests"][0]));
        let config = read(&blob(&manifest["config"]));
        blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer).unwrap());
        assert_eq!(config["config"]["Cmd"], json!(["sh"]));
        assert!(!layout.join("blobs/sha256/packing").exists());
    }
}
