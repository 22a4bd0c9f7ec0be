//! The devices, as a hostile driver finds them: how each is plugged in, and what it is to work.
//!
//! A new device is a line in [`devices`] and a file here; a crate of its own has its own line where its tests
//! are.

mod balloon;
mod block;
mod console;
mod mem;
mod net;
mod rng;
mod vsock;

use std::any::Any;

use super::Machine;

/// A kind of device.
pub struct Subject {
    /// What tests and corpora call it.
    pub name: &'static str,
    /// Plugs one into a machine.
    pub plug: fn(&Machine) -> Plugged,
    /// Drives the idle device in a slot by the rules, does with it what it is there for, and resets it.
    pub works: fn(&Machine, u8),
    /// Queues that refuse malformed chains, and the flag their descriptors have: 0, or
    /// [`Descriptor::WRITE`](super::Descriptor::WRITE) where the device writes.
    pub refusing: &'static [(u16, u16)],
}

/// A device in its slot.
pub struct Plugged {
    /// The slot.
    pub slot: u8,
    /// The host's side of it, for as long as it is there.
    pub host: Box<dyn Any + Send + Sync>,
}

/// Calls the macro `$each` with the name of each device of this crate.
#[macro_export]
macro_rules! for_each_device {
    ($each:ident) => {
        $each!(BALLOON);
        $each!(BLOCK);
        $each!(CONSOLE);
        $each!(MEM);
        $each!(NET);
        $each!(RNG);
        $each!(VSOCK);
    };
}

pub(crate) use block::disk;

/// The devices of this crate.
pub mod devices {
    pub use super::balloon::BALLOON;
    pub use super::block::BLOCK;
    pub use super::console::CONSOLE;
    pub use super::mem::MEM;
    pub use super::net::NET;
    pub use super::rng::RNG;
    pub use super::vsock::VSOCK;
}
