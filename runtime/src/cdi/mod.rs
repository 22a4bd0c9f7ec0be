//! Container Device Interface (github.com/cncf-tags/container-device-interface, SPEC.md 1.0): devices of vendors, by
//! name.
//!
//! A device is called `vendor.com/class=name` and stands in a file below `/etc/cdi` or `/var/run/cdi`, which says
//! what a container that wants it needs: nodes, mounts, variables. All of that goes into the OCI spec on the
//! host, before anything is planned, so a node a file names is lent like any other. What a file asks for and a
//! microVM cannot have is refused by name. For a container that runs it goes into no spec, but says what is to
//! come ([`for_running`]); what only a new process could be given is refused by name.
//!
//! [`name`] and [`apply`] are pure; [`registry`] reads the files. Knows nothing of guests.

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

/// Annotations with this prefix name devices, separated by commas.
pub const ANNOTATIONS: &str = "cdi.k8s.io/";

/// Why a container cannot have the devices it names.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// An annotation with something else than names.
    #[error("annotation {annotation}")]
    Annotation {
        /// Its name.
        annotation: String,
        /// The first word that is no name.
        #[source]
        source: ParseNameError,
    },
    /// No such device.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The device wants what cannot be had.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// The spec with the devices its annotations name; the same spec if they name none.
///
/// Applying it to a spec in which somebody has applied them already changes nothing of weight: what is there is
/// replaced by its like.
pub fn apply_annotations(spec: Spec, registry: impl FnOnce() -> Registry) -> Result<Spec, CdiError> {
    let names = wanted(&spec)?;
    if names.is_empty() {
        return Ok(spec);
    }
    let registry = registry();
    let edits = registry.edits(&names)?;
    Ok(apply::apply(&spec, &edits, &apply::look_at_node)?)
}

/// What a device needs of a container that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Needed {
    /// The device.
    pub name: DeviceName,
    /// As they would be in its spec.
    pub devices: Vec<LinuxDevice>,
    /// For those.
    pub rules: Vec<LinuxDeviceCgroup>,
    /// Paths of the host.
    pub mounts: Vec<NeededMount>,
}

/// A path of the host that is mounted in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededMount {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
    /// Not to be written to.
    pub read_only: bool,
    /// What else is kept from it: `nosuid`, `nodev`, ...
    pub options: Vec<String>,
}

/// What each of these devices needs of a container whose init is `process` and runs.
///
/// # Errors
/// A device needs what only a process that starts can be given, and `process` has not got it.
pub fn for_running(
    names: &[DeviceName],
    process: &Process,
    registry: &Registry,
) -> Result<Vec<Needed>, CdiError> {
    // What a file says for all its devices each of them needs: it goes with the last.
    let one = |name: &DeviceName| {
        let edits = registry.edits(std::slice::from_ref(name))?;
        Ok(apply::needed(name, process, &edits, &apply::look_at_node)?)
    };
    names.iter().map(one).collect()
}

/// The devices a spec's annotations name, each once, by annotation and then as they stand there.
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
