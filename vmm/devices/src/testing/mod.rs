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

mod driver;
mod hostile;
mod machine;
mod platform;
mod virtqueue;

pub use driver::Driver;
pub use driver::Function;
pub use hostile::refuses_malformed_chains;
pub use machine::Machine;
pub use platform::FakePlatform;
pub use platform::Mapping;
pub use virtqueue::Buffer;
pub use virtqueue::Descriptor;
pub use virtqueue::Used;
pub use virtqueue::Virtqueue;
