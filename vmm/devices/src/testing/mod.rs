//! A machine without a hypervisor, and a guest driver in the words of the specifications, to drive devices
//! exactly as a guest would: through configuration space, BARs, RAM and interrupts.
//!
//! Compiled for tests only (feature `test-util`). What goes wrong here panics, as in any test.
//!
//! ```text
//!   Driver, Virtqueue   what a guest does (virtio 1.2 §3)
//!        │ reads, writes, waits for messages
//!   Machine             RAM, one MMIO bus, one PCI segment
//!        │
//!   platform            interrupts, doorbells and mappings that remember what was asked of them
//! ```

#![expect(clippy::unwrap_used, reason = "test support: a failure here is a failed test")]

mod census;
mod driver;
mod fence;
pub mod fuzz;
mod hostile;
mod lines;
mod machine;
mod plain;
mod platform;
mod subject;
mod virtqueue;

pub use census::Census;
pub use census::Counting;
pub use census::peak;
pub use driver::Driver;
pub use driver::Function;
pub use hostile::Hostile;
pub use hostile::Operation;
pub use hostile::Session;
pub use hostile::Stage;
pub use hostile::malformed_sessions;
pub use hostile::quiet_sessions;
pub use hostile::random_bytes;
pub use hostile::random_inputs;
pub use hostile::random_sessions;
pub use hostile::refuses_malformed_chains;
pub use hostile::replay;
pub use hostile::survives;
pub use lines::log_lines;
pub use machine::Machine;
pub use plain::Plain;
pub use platform::Confine;
pub use platform::FakePlatform;
pub use platform::Mapping;
pub use subject::Plugged;
pub use subject::Subject;
pub use subject::devices;
pub(crate) use subject::disk;
pub use virtqueue::Buffer;
pub use virtqueue::Descriptor;
pub use virtqueue::Used;
pub use virtqueue::Virtqueue;
