//! The host's end of the agent protocol: one ttrpc connection over vsock (`protocol/proto/agent.proto`), and one
//! connection for each standard stream.
//!
//! Typed calls with typed errors; decides nothing. Only `convert` converts the runtime's types to the protocol's.

mod client;
mod convert;
mod ready;
mod stream;

pub use client::Agent;
pub use client::AgentError;
pub use convert::stats;
pub use ready::Ready;
pub use ready::ReadyError;
pub use stream::StreamError;
pub use stream::new_secret;
pub use stream::open_stream;

/// The protocol's messages.
pub use kiai_protocol::agent as message;
