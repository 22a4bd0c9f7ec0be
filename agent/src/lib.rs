//! The agent in the guest: PID 1 of a microVM, which runs OCI containers for the host.
//!
//! One process serves the host over vsock ([`server`]) on one thread, and reaps children ([`reaper`]). It executes
//! itself as a single-threaded helper for steps that a process with threads must not do ([`oci`]). It decides nothing
//! that the host can decide, and the host never learns a name that only the guest has: device nodes, interface indices
//! and mount sources are found here ([`device`], [`net`], [`storage`]).
//!
//! The contract is `protocol/proto/agent.proto`. The library serves the program, its tests and fuzz targets.

pub mod cgroup;
pub mod container;
pub mod device;
pub mod events;
pub mod fault;
pub mod guest;
pub mod init;
pub mod log;
pub mod memory;
pub mod net;
pub mod oci;
pub mod panics;
pub mod reaper;
pub mod sandbox;
pub mod server;
pub mod storage;
pub mod stream;
pub mod uevent;
pub mod vsock;

mod sys;
