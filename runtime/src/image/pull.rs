//! Pulls from registries (OCI distribution-spec 1.1): manifests first, then every blob that is not in the store,
//! several in parallel. An interrupted download is resumed, and each blob is verified by its digest.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Once;

use futures::StreamExt;
use futures::TryStreamExt;
use oci_client::Client;
use oci_client::Reference;
use oci_client::client::BlobResponse;
use oci_client::client::ClientConfig;
use oci_client::client::ClientProtocol;
use oci_client::manifest::OciDescriptor;
use oci_spec::image::Descriptor;
use tokio::io::AsyncWriteExt;

use super::ImageError;
use super::Progress;
use super::blobs::BlobDigest;
use super::blobs::Blobs;
use super::credentials;
use super::manifest;
use super::manifest::Document;

/// Number of blobs fetched in parallel.
const AT_ONCE: usize = 4;

const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Options of the connection to a registry.
#[derive(Debug, Clone, Copy, Default)]
pub struct PullOptions {
    /// Whether to use plain HTTP. For registries on loopback it is always used, as docker does.
    pub plain_http: bool,
}

/// Fetches the missing blobs; returns the digest of the manifest for this platform.
pub(super) async fn fetch(
    blobs: &Blobs,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<BlobDigest, ImageError> {
    let name = reference.whole();
    let failed = |reason: String| ImageError::Registry { name: name.clone(), reason };
    let registry =
        Registry { client: client(reference, options)?, reference: reference.clone(), name: name.clone() };
    let auth = credentials::of(reference.resolve_registry());
    let mut wanted = reference.clone();
    let mut seen = 0;
    let (digest, found) = loop {
        let (bytes, _) = registry
            .client
            .pull_manifest_raw(&wanted, &auth, ACCEPTED)
            .await
            .map_err(|e| failed(e.to_string()))?;
        if bytes.len() as u64 > manifest::LARGEST_MANIFEST {
            return Err(ImageError::TooBig {
                what: format!("manifest of {name}"),
                most: manifest::LARGEST_MANIFEST,
            });
        }
        let digest = BlobDigest::of(&bytes);
        if let Some(asked) = wanted.digest()
            && asked != digest.to_string()
        {
            let reason = format!("its content has digest {digest}");
            return Err(ImageError::Damaged { digest: asked.to_owned(), reason });
        }
        match manifest::parse(&name, &bytes)? {
            Document::Manifest(found) => {
                blobs.ingest(&digest, bytes.len() as u64, &mut &bytes[..])?;
                break (digest, found);
            }
            Document::Index(index) => {
                seen += 1;
                if seen > manifest::DEEPEST_INDEX {
                    return Err(failed("indices of indices, too deep".to_owned()));
                }
                let entry = manifest::choose(&name, &index)?;
                wanted = reference.clone_with_digest(entry.digest().to_string());
            }
        }
    };
    let all: Vec<&Descriptor> = std::iter::once(found.config()).chain(found.layers()).collect();
    futures::stream::iter(all)
        .map(|descriptor| registry.fetch_blob(blobs, descriptor, progress))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(digest)
}

struct Registry {
    client: Client,
    reference: Reference,
    name: String,
}

impl Registry {
    async fn fetch_blob(
        &self,
        blobs: &Blobs,
        descriptor: &Descriptor,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        let digest = BlobDigest::parse(descriptor.digest().as_ref())?;
        if blobs.has(&digest) {
            return Ok(());
        }
        let mut step = progress.step(&format!("pull {}", &digest.hex()[..12]), Some(descriptor.size()));
        // Another process may fetch this blob and holds the lock until the blob is complete. flock blocks, so it
        // is called on a thread that may block.
        let waiting = (blobs.clone(), digest.clone());
        let lock = tokio::task::spawn_blocking(move || waiting.0.lock(&waiting.1))
            .await
            .map_err(|e| ImageError::Store(e.to_string()))??;
        if !blobs.has(&digest) {
            self.download(&blobs.partial(&digest), descriptor, &mut *step).await?;
            blobs.accept(&digest, descriptor.size())?;
        }
        drop(lock);
        step.finish("pulled");
        Ok(())
    }

    /// Resumes the partial blob of an earlier attempt, if the registry supports ranges.
    async fn download(
        &self,
        partial: &Path,
        descriptor: &Descriptor,
        step: &mut dyn super::progress::Step,
    ) -> Result<(), ImageError> {
        let io = |source| ImageError::Io { action: "write", path: partial.to_owned(), source };
        let registry = |reason: String| ImageError::Registry { name: self.name.clone(), reason };
        let mut file =
            tokio::fs::OpenOptions::new().append(true).create(true).open(partial).await.map_err(io)?;
        let mut have = file.metadata().await.map_err(io)?.len();
        let wanted = OciDescriptor {
            digest: descriptor.digest().to_string(),
            size: i64::try_from(descriptor.size()).unwrap_or(i64::MAX),
            ..Default::default()
        };
        if have >= descriptor.size() {
            // The partial blob is complete or too long: no request is needed, and `accept` checks it.
            return Ok(());
        }
        let mut stream = if have == 0 {
            self.client
                .pull_blob_stream(&self.reference, &wanted)
                .await
                .map_err(|e| registry(e.to_string()))?
        } else {
            let answer = self.client.pull_blob_stream_partial(&self.reference, &wanted, have, None).await;
            match answer.map_err(|e| registry(e.to_string()))? {
                BlobResponse::Partial(rest) => {
                    step.advance(have);
                    rest
                }
                BlobResponse::Full(whole) => {
                    file.set_len(0).await.map_err(io)?;
                    have = 0;
                    whole
                }
            }
        };
        while let Some(piece) = stream.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                // The library verifies the digest while it streams. A mismatch is damage, not a network error.
                Err(e) if e.to_string().contains("digest") => {
                    let digest = descriptor.digest().to_string();
                    drop(file);
                    let _ = tokio::fs::remove_file(partial).await;
                    return Err(ImageError::Damaged { digest, reason: e.to_string() });
                }
                Err(e) => return Err(registry(format!("blob {}: {e}", descriptor.digest()))),
            };
            have = have.saturating_add(piece.len() as u64);
            if have > descriptor.size() {
                let most = descriptor.size();
                return Err(ImageError::TooBig { what: format!("blob {}", descriptor.digest()), most });
            }
            file.write_all(&piece).await.map_err(io)?;
            step.advance(piece.len() as u64);
        }
        file.flush().await.map_err(io)
    }
}

fn client(reference: &Reference, options: &PullOptions) -> Result<Client, ImageError> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Fails only if a provider is installed already, which is then used.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let registry = reference.resolve_registry();
    let plain = options.plain_http || is_loopback(registry);
    let protocol = if plain { ClientProtocol::Http } else { ClientProtocol::Https };
    let config = ClientConfig { protocol, ..Default::default() };
    Client::try_from(config)
        .map_err(|e| ImageError::Registry { name: reference.whole(), reason: e.to_string() })
}

/// Whether "host:port" is a loopback address.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine_only() {
        for registry in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in ["docker.io", "10.0.0.1:5000", "localhost.example", "[::2]:1"] {
            assert!(!is_loopback(registry), "{registry}");
        }
    }
}
