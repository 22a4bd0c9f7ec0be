//! What the project is built from: licences, sources, several versions of one crate, dependencies that nothing uses.
//!
//! `deny.toml` is the policy, in the format of cargo-deny. Nobody shall have to build cargo-deny for a check: the part
//! of it that needs nothing but `cargo metadata` is here, and runs always; `cargo xtask check --advisories` builds
//! cargo-deny once and has it check the whole policy, known vulnerabilities included.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;
use walkdir::WalkDir;

use crate::metadata::{Metadata, Package};
use crate::{cache, spdx, step, workspace};

const POLICY: &str = "deny.toml";
const CARGO_DENY: &str = "0.20.2";
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The part of cargo-deny's configuration that is checked here.
#[derive(Debug, Deserialize)]
struct Policy {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
    exceptions: Vec<Exception>,
    clarify: Vec<Clarification>,
}

/// A licence that one crate may have.
#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

/// The licence of a crate that does not say it in its manifest.
#[derive(Debug, Deserialize)]
struct Clarification {
    #[serde(rename = "crate")]
    name: String,
    expression: String,
}

#[derive(Debug, Deserialize)]
struct Bans {
    skip: Vec<Skip>,
}

/// A version that there may be beside the one that is used otherwise.
#[derive(Debug, Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

/// All that is against the policy.
pub(crate) fn mistakes(metadata: &Metadata) -> Result<Vec<String>> {
    let policy: Policy = toml::from_str(&workspace::read(POLICY)?).context(POLICY)?;
    let mut found = licences(&policy.licenses, &metadata.packages);
    found.extend(sources(&metadata.packages));
    found.extend(duplicates(&policy.bans.skip, &metadata.packages));
    for package in metadata.ours() {
        found.extend(unused(package, &sources_of(package)?));
    }
    Ok(found)
}

/// Has cargo-deny check all of the policy. That the list of known vulnerabilities cannot be had is a failure.
pub(crate) fn advisories() -> Result<()> {
    let inputs = cache::Inputs::new(1).text("version", CARGO_DENY);
    let tool = cache::artifact("cargo-deny", &inputs, |folder| {
        let mut install = workspace::cargo();
        install.args(["install", "cargo-deny", "--version", CARGO_DENY, "--root"]).arg(folder);
        step::run("installing cargo-deny", &mut install)
    })?;
    let deny = |arguments: &[&str]| {
        let mut command = std::process::Command::new(tool.join("bin/cargo-deny"));
        command.current_dir(workspace::root()).args(["--locked"]).args(arguments);
        command
    };
    step::run("cargo deny: the policy", &mut deny(&["check", "bans", "licenses", "sources"]))?;
    step::run("cargo deny: known vulnerabilities", &mut deny(&["check", "advisories"]))
        .context("known vulnerabilities: found, or their list could not be had")
}

fn licences(policy: &Licenses, packages: &[Package]) -> Vec<String> {
    let mistake = |package: &Package| {
        let clarified = policy.clarify.iter().find(|clarify| clarify.name == package.name);
        let Some(expression) = package.license.as_ref().or(clarified.map(|clarify| &clarify.expression))
        else {
            return Some(format!("{} {}: names no licence", package.name, package.version));
        };
        let exceptions: Vec<&String> = policy
            .exceptions
            .iter()
            .filter(|exception| exception.name == package.name)
            .flat_map(|exception| &exception.allow)
            .collect();
        let is_allowed = |licence: &str| {
            policy.allow.iter().chain(exceptions.iter().copied()).any(|allowed| allowed == licence)
        };
        let (name, version) = (&package.name, &package.version);
        match spdx::holds(expression, is_allowed) {
            Ok(true) => None,
            Ok(false) => Some(format!("{name} {version}: {POLICY} does not allow its licence, {expression}")),
            Err(error) => Some(format!("{name} {version}: its licence, {expression}: {error:#}")),
        }
    };
    packages.iter().filter_map(mistake).collect()
}

fn sources(packages: &[Package]) -> Vec<String> {
    let mistake = |package: &Package| {
        let source = package.source.as_ref().filter(|source| *source != CRATES_IO)?;
        Some(format!("{} {}: comes from {source}, not from crates.io", package.name, package.version))
    };
    packages.iter().filter_map(mistake).collect()
}

/// A crate may be there in one version; each further one needs an entry with a reason, and each entry its crate.
fn duplicates(skips: &[Skip], packages: &[Package]) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    let mut found = Vec::new();
    for skip in skips {
        let (name, version) = skip.name.split_once('@').unwrap_or((&skip.name, ""));
        let removed = versions.get_mut(name).is_some_and(|all| all.len() > 1 && all.remove(version));
        if !removed {
            found.push(format!("{POLICY}: {} is no second version of anything: remove the entry", skip.name));
        }
        if skip.reason.is_empty() {
            found.push(format!("{POLICY}: {}: without a reason", skip.name));
        }
    }
    found.extend(versions.iter().filter(|(_, all)| all.len() > 1).map(|(name, all)| {
        let all: Vec<_> = all.iter().copied().collect();
        format!(
            "{name} is built in versions {}: unify them, or give the reason in {POLICY}",
            all.join(" and ")
        )
    }));
    found
}

/// The dependencies of a package that its sources do not name.
fn unused(package: &Package, sources: &str) -> Vec<String> {
    let named: BTreeSet<&str> =
        sources.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').flat_map(crates_in).collect();
    let mistake = |dependency: &crate::metadata::Dependency| {
        let identifier = dependency.identifier();
        let is_used = named.contains(identifier.as_str())
            || dependency.name == package.name
            || package.generates_use_of(&dependency.name);
        (!is_used).then(|| format!("{}: nothing in it uses its dependency {}", package.name, dependency.name))
    };
    package.dependencies.iter().filter_map(mistake).collect()
}

/// What in a path may be the name of a crate: its start, if it goes on. A word alone may be anything.
fn crates_in(path: &str) -> Option<&str> {
    path.trim_start_matches("::").split("::").next().filter(|name| path.contains("::") && !name.is_empty())
}

/// All code of a package, generated code excepted.
fn sources_of(package: &Package) -> Result<String> {
    let mut text = String::new();
    for entry in WalkDir::new(package.folder()).into_iter().filter_entry(|entry| {
        // Another package below this one.
        entry.depth() == 0 || !entry.path().join("Cargo.toml").exists() && entry.file_name() != "target"
    }) {
        let path = entry?.into_path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let code = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            code.lines().for_each(|line| {
                text += line.split("//").next().unwrap_or_default();
                text += "\n";
            });
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    fn package(name: &str, version: &str, license: Option<&str>) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            license: license.map(str::to_owned),
            ..Package::default()
        }
    }

    fn policy() -> Policy {
        toml::from_str(
            "[licenses]\nallow = [\"MIT\", \"Apache-2.0\"]\n\
             exceptions = [{ crate = \"odd\", allow = [\"MPL-2.0\"] }]\n\
             clarify = [{ crate = \"silent\", expression = \"MIT\" }]\n\
             [bans]\nskip = [{ crate = \"twice@1.0.0\", reason = \"an old one\" }]\n",
        )
        .unwrap()
    }

    #[test]
    fn a_licence_is_allowed_to_all_or_to_the_crate() {
        let found = |package| licences(&policy().licenses, &[package]);
        assert_eq!(found(package("a", "1", Some("MIT OR GPL-3.0"))), [""; 0]);
        assert_eq!(found(package("odd", "1", Some("MPL-2.0"))), [""; 0]);
        assert_eq!(found(package("silent", "1", None)), [""; 0]);
        assert!(found(package("a", "1", Some("MPL-2.0")))[0].contains("MPL-2.0"));
        assert!(found(package("a", "1", None))[0].contains("names no licence"));
    }

    #[test]
    fn only_crates_io_is_a_source() {
        let from = |source: &str| Package { source: Some(source.into()), ..package("a", "1", None) };
        assert_eq!(sources(&[from(CRATES_IO), package("ours", "1", None)]), [""; 0]);
        assert_eq!(sources(&[from("git+https://example.org/a")]).len(), 1);
    }

    #[test]
    fn a_second_version_needs_a_reason_and_a_reason_a_second_version() {
        let found = |packages: &[(&str, &str)]| {
            let packages: Vec<_> =
                packages.iter().map(|(name, version)| package(name, version, None)).collect();
            duplicates(&policy().bans.skip, &packages)
        };
        assert_eq!(found(&[("twice", "1.0.0"), ("twice", "2.0.0"), ("once", "1.0.0")]), [""; 0]);
        assert!(
            found(&[("twice", "1.0.0"), ("twice", "2.0.0"), ("twice", "3.0.0")])[0]
                .contains("2.0.0 and 3.0.0")
        );
        assert!(found(&[("twice", "2.0.0")])[0].contains("remove the entry"));
        assert!(found(&[("twice", "1.0.0")])[0].contains("remove the entry"));
    }

    #[test]
    fn a_dependency_that_no_path_starts_with_is_unused() {
        let on = |name: &str, rename: Option<&str>| Dependency {
            name: name.into(),
            rename: rename.map(str::to_owned),
            ..Dependency::default()
        };
        let ours = Package {
            dependencies: vec![on("serde-json", None), on("vm-memory", Some("old")), on("uuid", None)],
            ..package("a", "1", None)
        };
        let found = unused(&ours, "use serde_json::Value;\nlet x: ::old::Bytes; let uuid = my::uuid::new();");
        assert_eq!(found, ["a: nothing in it uses its dependency uuid"]);
        let metadata = Some(serde_json::json!({ "generated": { "uses": ["uuid"] } }));
        assert_eq!(unused(&Package { metadata, ..ours }, "serde_json::x; old::y"), [""; 0]);
    }
}
