//! The format of a CDI file (SPEC.md "CDI JSON Specification"): every key of the specification, and no other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::name::is_device;
use super::name::is_kind;

/// The supported major versions of the specification.
const VERSIONS: [&str; 2] = ["0.", "1."];

/// The content of one CDI file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) cdi_version: String,
    pub(super) kind: String,
    /// Annotations of the file, not used here.
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// Edits for every container with at least one of the devices.
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

/// One device of a CDI file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub(super) container_edits: ContainerEdits,
}

/// The edits that a container with the device needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct ContainerEdits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) mounts: Vec<MountEdit>,
    pub(super) hooks: Vec<Hook>,
    pub(super) net_devices: Vec<NetDevice>,
    pub(super) intel_rdt: Option<serde_json::Value>,
    #[serde(rename = "additionalGids")]
    pub(super) additional_gids: Vec<u32>,
}

/// A device node of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct DeviceNode {
    pub(super) path: PathBuf,
    pub(super) host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    pub(super) typ: Option<String>,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// A mount of a host path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct MountEdit {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    #[serde(default, rename = "type")]
    pub(super) typ: Option<String>,
    #[serde(default)]
    pub(super) options: Vec<String>,
}

/// A hook: a program of the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: PathBuf,
}

/// A network interface of the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
}

impl File {
    /// Checks the file; the error is the first thing that is invalid.
    pub(super) fn check(&self) -> Result<(), String> {
        if !VERSIONS.iter().any(|version| self.cdi_version.starts_with(version)) {
            return Err(format!("cdiVersion {:?} is not supported", self.cdi_version));
        }
        if !is_kind(&self.kind) {
            return Err(format!("kind {:?} is not VENDOR/CLASS", self.kind));
        }
        if self.devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        self.container_edits.check()?;
        for (index, device) in self.devices.iter().enumerate() {
            if !is_device(&device.name) {
                return Err(format!("device {:?}: not a name", device.name));
            }
            if self.devices[..index].iter().any(|other| other.name == device.name) {
                return Err(format!("device {:?} is defined twice", device.name));
            }
            device.container_edits.check().map_err(|reason| format!("device {:?}: {reason}", device.name))?;
        }
        Ok(())
    }
}

impl ContainerEdits {
    fn check(&self) -> Result<(), String> {
        if let Some(word) = self.env.iter().find(|word| word.find('=').is_none_or(|at| at == 0)) {
            return Err(format!("env {word:?} is not NAME=VALUE"));
        }
        for node in &self.device_nodes {
            let named = |reason: &str| Err(format!("device node {:?}: {reason}", node.path));
            if !node.path.is_absolute() || node.host_path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return named("a path is not absolute");
            }
            if node.typ.as_deref().is_some_and(|typ| !["b", "c", "u", "p", ""].contains(&typ)) {
                return named("its type is none of b, c, u and p");
            }
            if node.permissions.iter().flat_map(|letters| letters.chars()).any(|c| !"rwm".contains(c)) {
                return named("permissions are made of the letters r, w and m");
            }
        }
        for mount in &self.mounts {
            if !mount.host_path.is_absolute() || !mount.container_path.is_absolute() {
                return Err(format!("mount {:?}: a path is not absolute", mount.container_path));
            }
        }
        Ok(())
    }
}
