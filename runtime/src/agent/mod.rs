//! The host's end of the agent protocol: one ttrpc connection over vsock (`protocol/proto/agent.proto`).
//!
//! Typed calls with typed errors; decides nothing. Only `convert` converts the runtime's types to the protocol's.

mod client;
mod convert;
mod ready;

pub use client::Agent;
pub use client::AgentError;
pub use convert::stats;
pub use ready::Ready;
pub use ready::ReadyError;

/// The protocol's messages.
pub use kiai_protocol::agent as message;
