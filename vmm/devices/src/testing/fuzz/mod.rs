//! What a fuzzer, and the replay of what one has found, calls: each takes any bytes, makes a sequence of
//! operations of them and panics if a rule of the device's or the host's is broken.

mod block;
mod ioapic;
mod net;
mod segment;
mod serial;
mod vsock;

pub use block::block;
pub use ioapic::ioapic;
pub use net::net;
pub use segment::segment;
pub use serial::serial;
pub use vsock::vsock;

use arbitrary::Arbitrary;
use arbitrary::Unstructured;

/// The input as a value; bytes that are too few make none.
fn parse<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(Unstructured::new(bytes)).ok()
}
