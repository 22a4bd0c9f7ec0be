//! Container Device Interface (github.com/cncf-tags/container-device-interface, SPEC.md 1.0): vendors' devices,
//! which a container asks for by name.
//!
//! A device is named `vendor.com/class=name`. A file below `/etc/cdi` or `/var/run/cdi` defines it and lists the edits
//! that a container with the device needs: device nodes, mounts, environment variables. The host writes these edits
//! into the OCI spec before the sandbox is planned, so a device node in a CDI file is assigned like any other. An
//! edit that a microVM does not support is an error that names it. For a running container [`for_running`] returns
//! the edits as a hotplug request; an edit that affects only a new process is an error that names it.
//!
//! [`name`] and [`apply`] are pure; [`registry`] reads the files. This module does not know guests.

mod apply;
mod file;
mod name;
mod registry;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::Process;
use oci_spec::runtime::Spec;

pub use apply::ApplyError;
pub use name::DeviceName;
pub use name::ParseNameError;
pub use registry::Registry;
pub use registry::RegistryError;

/// The value of an annotation with this prefix is a list of device names, separated by commas.
pub const ANNOTATIONS: &str = "cdi.k8s.io/";

/// The CDI devices of a container cannot be resolved or applied.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// The value of an annotation is not a list of device names.
    #[error("annotation {annotation}")]
    Annotation {
        /// Name of the annotation.
        annotation: String,
        /// The first item that is not a device name.
        #[source]
        source: ParseNameError,
    },
    /// The device is not defined.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// An edit of the device is not supported.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Applies the devices in the spec's annotations to the spec. Without such annotations the spec is unchanged.
///
/// Applying the devices a second time, for instance after the container engine did, has no effect: each edit replaces
/// an equal one.
pub fn apply_annotations(spec: Spec, registry: impl FnOnce() -> Registry) -> Result<Spec, CdiError> {
    let names = wanted(&spec)?;
    if names.is_empty() {
        return Ok(spec);
    }
    let registry = registry();
    let edits = registry.edits(&names)?;
    Ok(apply::apply(&spec, &edits, &apply::look_at_node)?)
}

/// The edits that a device needs in a running container.
#[derive(Debug, Clone, PartialEq)]
pub struct Needed {
    /// The device.
    pub name: DeviceName,
    /// Device nodes, as in an OCI spec.
    pub devices: Vec<LinuxDevice>,
    /// Device rules for `nodes`.
    pub rules: Vec<LinuxDeviceCgroup>,
    /// Bind mounts of host paths.
    pub mounts: Vec<NeededMount>,
}

/// A bind mount of a host path in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededMount {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub destination: PathBuf,
    /// Whether the mount is read-only.
    pub read_only: bool,
    /// The other mount options: `nosuid`, `nodev`, ...
    pub options: Vec<String>,
}

/// The edits that each of these devices needs in a running container whose init is `process`.
///
/// # Errors
/// A device needs an environment variable or a group that `process` does not have; only a new process can get it.
pub fn for_running(
    names: &[DeviceName],
    process: &Process,
    registry: &Registry,
) -> Result<Vec<Needed>, CdiError> {
    // The edits of a file that apply to all its devices are returned with the last one.
    let one = |name: &DeviceName| {
        let edits = registry.edits(std::slice::from_ref(name))?;
        Ok(apply::needed(name, process, &edits, &apply::look_at_node)?)
    };
    names.iter().map(one).collect()
}

/// The devices in a spec's annotations, without duplicates, ordered by annotation and then by position in the list.
fn wanted(spec: &Spec) -> Result<Vec<DeviceName>, CdiError> {
    let mut annotations: Vec<_> = spec
        .annotations()
        .iter()
        .flatten()
        .filter(|(annotation, _)| annotation.starts_with(ANNOTATIONS))
        .collect();
    annotations.sort();
    let mut names = Vec::new();
    for (annotation, value) in annotations {
        for word in value.split(',') {
            let name: DeviceName = word
                .parse()
                .map_err(|source| CdiError::Annotation { annotation: annotation.clone(), source })?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}
