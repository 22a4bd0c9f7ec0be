//! The contract between the host runtime and the guest agent: messages, ports, device locators.
//!
//! Both sides compile this crate; it does no I/O and names neither KVM nor OCI. The messages and the service
//! are generated from `proto/agent.proto`, where every field states its unit.

pub mod pci_path;
pub mod ports;
pub mod stream;

/// Messages of the agent service.
#[allow(
    warnings,
    clippy::all,
    clippy::unwrap_used,
    clippy::allow_attributes,
    reason = "generated from proto/agent.proto, documented there"
)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// Client and server of the agent service (async ttrpc).
#[allow(
    warnings,
    clippy::all,
    clippy::unwrap_used,
    clippy::allow_attributes,
    reason = "generated from proto/agent.proto, documented there"
)]
pub mod service {
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}
