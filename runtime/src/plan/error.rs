//! Why a spec cannot be planned.

use std::path::PathBuf;

use super::PciAddress;

/// The spec asks for something that cannot be provided. Nothing has been done yet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// A container id that cannot name a directory.
    #[error(
        "id {0:?}: letters, digits, '_', '.' and '-' are allowed, at most 128, the first a letter or digit"
    )]
    Id(String),
    /// An annotation with our prefix that does not exist.
    #[error("annotation {0} is unknown; check its spelling")]
    UnknownAnnotation(String),
    /// An annotation whose value cannot be used.
    #[error("annotation {name}: {value:?} {reason}")]
    Annotation {
        /// The annotation's full name.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong with the value, as a verb phrase.
        reason: &'static str,
    },
    /// An annotation that the configuration does not allow pods to use.
    #[error("annotation {0}: the configuration does not allow pods to use it; add it to [pods] annotations")]
    ForbiddenAnnotation(String),
    /// A part of the spec that every container needs.
    #[error("the OCI spec has no {0}")]
    Missing(&'static str),
    /// A bind mount whose source does not exist on the host.
    #[error("mount {destination}: source {source_path} does not exist")]
    NoSource {
        /// The mount's path in the container.
        destination: PathBuf,
        /// The source's path on the host.
        source_path: PathBuf,
    },
    /// A mount that a microVM cannot provide.
    #[error("mount {destination}: {reason}")]
    Mount {
        /// The mount's path in the container.
        destination: PathBuf,
        /// Why it cannot be provided.
        reason: String,
    },
    /// An entry for a device that the guest does not have and the host cannot assign.
    #[error("device {path}: {reason}")]
    Device {
        /// The entry's path in the container.
        path: PathBuf,
        /// Why it cannot be provided.
        reason: String,
    },
    /// An annotation chooses a PCI function whose group has no entry.
    #[error("PCI function {0}: linux.devices has no entry for its IOMMU group; add one")]
    NoGroup(PciAddress),
    /// A rule of linux.resources.devices for a device that has no entry.
    #[error(
        "device rule {0}: linux.devices has no entry for this device, and in the guest another device may have the number"
    )]
    DeviceRule(String),
    /// A namespace of the host, which a guest cannot join.
    #[error("{kind} namespace {path}: a microVM cannot join a namespace of the host")]
    Namespace {
        /// The namespace's type.
        kind: &'static str,
        /// The namespace's path.
        path: PathBuf,
    },
    /// OCI hooks that would be programs of the host in the container's namespaces.
    #[error("{0} hooks are not supported: they are programs of the host, which cannot reach into a microVM")]
    Hooks(&'static str),
    /// A hook that breaks the OCI runtime-spec.
    #[error("{kind} hook {path}: {reason}")]
    Hook {
        /// The list it is in.
        kind: &'static str,
        /// Its program.
        path: PathBuf,
        /// What is wrong with it, as a verb phrase.
        reason: &'static str,
    },
    /// More memory or vCPUs than the microVM can have.
    #[error("{0}")]
    TooBig(String),
}
