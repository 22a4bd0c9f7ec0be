//! A driver that means harm: does to a device all a guest can do, in any order, and then finds that it did no
//! harm but to itself.
//!
//! What it does is data ([`Operation`]), made from bytes: random ones in tests, a fuzzer's, or a file of a run
//! that once went wrong. [`survives`] is the whole test, the same for every device.

mod driver;
mod malformed;
mod operation;
mod rings;
mod run;
mod suite;

pub use driver::Hostile;
pub use malformed::refuses_malformed_chains;
pub use operation::Operation;
pub use operation::Session;
pub use run::Stage;
pub use run::survives;
pub use suite::malformed_sessions;
pub use suite::quiet_sessions;
pub use suite::random_bytes;
pub use suite::random_inputs;
pub use suite::random_sessions;
pub use suite::replay;
