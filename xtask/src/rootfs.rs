//! The guest's initramfs: `rootfs/manifest.toml`, packed. The same inputs give the same bytes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{build, cache, cpio, step, workspace};

const MANIFEST: &str = "rootfs/manifest.toml";
/// What the manifest calls the agent's binary.
const AGENT: &str = "agent";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    entry: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    mode: String,
    source: Option<String>,
    device: Option<(u32, u32)>,
    target: Option<String>,
}

/// The initramfs file, with the agent as it is in the workspace now.
pub(crate) fn artifact() -> Result<PathBuf> {
    let agent = fs::read(build::agent()?)?;
    let archive = pack(&workspace::read(MANIFEST)?, |source| match source {
        AGENT => Ok(agent.clone()),
        path => fs::read(workspace::path(path)).with_context(|| path.to_owned()),
    })
    .context(MANIFEST)?;
    let inputs = cache::Inputs::new(1).bytes("archive", &archive);
    let folder = cache::artifact("rootfs", &inputs, |folder| {
        fs::write(folder.join("initramfs"), &archive)?;
        step::say(&format!("guest image: {:.1} MB", archive.len() as f64 / 1e6));
        Ok(())
    })?;
    Ok(folder.join("initramfs"))
}

fn pack(manifest: &str, read: impl Fn(&str) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let manifest: Manifest = toml::from_str(manifest)?;
    let mut archive = cpio::Archive::new();
    for entry in &manifest.entry {
        let path = entry.path.strip_prefix('/').with_context(|| format!("{}: not absolute", entry.path))?;
        ensure!(!path.is_empty() && !path.split('/').any(|part| part == ".."), "{}: no path", entry.path);
        let mode = u32::from_str_radix(&entry.mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .with_context(|| format!("{}: the mode {} is not octal", entry.path, entry.mode))?;
        match (&entry.source, entry.device, &entry.target) {
            (None, None, None) => archive.folder(path, mode),
            (Some(source), None, None) => archive.file(path, mode, &read(source)?),
            (None, Some(number), None) => archive.character_device(path, mode, number),
            (None, None, Some(target)) => archive.symlink(path, target),
            _ => bail!("{}: more than one of source, device and target", entry.path),
        }
    }
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(manifest: &str) -> Result<Vec<u8>> {
        pack(manifest, |source| Ok(format!("content of {source}").into_bytes()))
    }

    #[test]
    fn the_manifest_of_this_repository_packs_to_the_same_bytes_each_time() {
        let manifest = workspace::read(MANIFEST).unwrap();
        let first = packed(&manifest).unwrap();
        assert_eq!(first, packed(&manifest).unwrap());
        assert!(first.windows(16).any(|bytes| bytes == b"content of agent"));
    }

    #[test]
    fn mistakes_in_a_manifest_name_the_entry() {
        for mistake in [
            "path = \"relative\"\nmode = \"0755\"",
            "path = \"/a/../b\"\nmode = \"0755\"",
            "path = \"/a\"\nmode = \"rwx\"",
            "path = \"/a\"\nmode = \"0644\"\nsource = \"x\"\ntarget = \"y\"",
            "path = \"/a\"\nmode = \"0644\"\nsoruce = \"x\"",
        ] {
            assert!(packed(&format!("[[entry]]\n{mistake}\n")).is_err(), "{mistake}");
        }
    }
}
