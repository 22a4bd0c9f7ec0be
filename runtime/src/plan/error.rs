//! Why a spec cannot be planned.

use std::path::PathBuf;

use super::PciAddress;

/// The spec asks for something that cannot be done; nothing has been done yet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// A container id that could not be a directory's name.
    #[error(
        "id {0:?}: letters, digits, '_', '.' and '-' are allowed, at most 128, the first a letter or digit"
    )]
    Id(String),
    /// An annotation of ours nobody knows.
    #[error("annotation {0}: unknown")]
    UnknownAnnotation(String),
    /// An annotation's value does not fit.
    #[error("annotation {name}: {value:?} {reason}")]
    Annotation {
        /// Full name.
        name: String,
        /// What it says.
        value: String,
        /// What it should say.
        reason: &'static str,
    },
    /// A pod may not use this annotation.
    #[error("annotation {0}: not among the pod annotations the configuration allows ([pods] annotations)")]
    ForbiddenAnnotation(String),
    /// A part of the spec without which there is no container.
    #[error("the OCI spec has no {0}")]
    Missing(&'static str),
    /// A bind mount whose source is not on the host.
    #[error("mount {destination}: source {source_path} does not exist")]
    NoSource {
        /// In the container.
        destination: PathBuf,
        /// On the host.
        source_path: PathBuf,
    },
    /// A mount that has no meaning across the boundary of a microVM.
    #[error("mount {destination}: {reason}")]
    Mount {
        /// In the container.
        destination: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A device the guest does not have and the host cannot lend.
    #[error("device {path}: {reason}")]
    Device {
        /// In the container.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// An annotation chooses a PCI function, but no entry names its group.
    #[error("PCI function {0}: its IOMMU group is not among linux.devices")]
    NoGroup(PciAddress),
    /// A namespace of the host.
    #[error("{kind} namespace {path}: a microVM cannot join a namespace of the host")]
    Namespace {
        /// Its type.
        kind: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// OCI hooks are programs of the host.
    #[error("{0} hooks: not supported")]
    Hooks(&'static str),
    /// More than a microVM can have.
    #[error("{0}")]
    TooBig(String),
}
