//! Messages of containerd and of the CRI that the shim reads or writes itself; `proto/containerd.proto` has them.

#[allow(
    warnings,
    clippy::all,
    clippy::unwrap_used,
    clippy::allow_attributes,
    reason = "generated from proto/containerd.proto, documented there"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/containerd.rs"));
}

pub(super) use generated::Any;
pub(super) use generated::BootstrapParams;
pub(super) use generated::BootstrapResult;
pub(super) use generated::DnsConfig;
pub(super) use generated::PodSandboxConfig;
pub(super) use generated::RuntimeOptions;

/// Whether a type URL names this message: clients write the name alone, or behind a host.
pub(super) fn is_type(type_url: &str, name: &str) -> bool {
    type_url.rsplit('/').next() == Some(name)
}
