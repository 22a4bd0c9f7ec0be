//! What cargo knows of the workspace's packages and of all that they are built from.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{step, workspace};

/// The part of `cargo metadata` that the checks look at.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
}

/// A package: one of ours, or one that ours are built from on Linux on x86-64.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    /// None for a package of the workspace.
    pub(crate) source: Option<String>,
    pub(crate) manifest_path: String,
    pub(crate) dependencies: Vec<Dependency>,
    /// `package.metadata` of the manifest.
    pub(crate) metadata: Option<serde_json::Value>,
}

/// A dependency that a package names itself.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) rename: Option<String>,
    /// None for a package of the workspace.
    pub(crate) source: Option<String>,
}

impl Dependency {
    /// What code calls it.
    pub(crate) fn identifier(&self) -> String {
        self.rename.as_ref().unwrap_or(&self.name).replace('-', "_")
    }
}

impl Package {
    /// The folder of the package's manifest.
    pub(crate) fn folder(&self) -> &Path {
        Path::new(&self.manifest_path).parent().unwrap_or(Path::new("/"))
    }

    /// Whether the manifest says that code which the package's build script makes uses this dependency.
    pub(crate) fn generates_use_of(&self, dependency: &str) -> bool {
        let uses = self.metadata.as_ref().and_then(|metadata| metadata["generated"]["uses"].as_array());
        uses.is_some_and(|uses| uses.iter().any(|used| used == dependency))
    }
}

impl Metadata {
    /// Asks cargo.
    pub(crate) fn read() -> Result<Self> {
        let mut command = workspace::cargo();
        command.args(["metadata", "--format-version", "1"]);
        command.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
        serde_json::from_str(&step::output(&mut command)?).context("cargo metadata")
    }

    /// The packages of the workspace.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| package.source.is_none())
    }
}
