//! The device as a hostile driver finds it, and sequences of FUSE requests for a fuzzer. For tests only
//! (feature `test-util`).

#![expect(clippy::unwrap_used, reason = "test support: a failure here is a failed test")]

mod requests;
mod subject;

pub use requests::requests;
pub use subject::FS;
