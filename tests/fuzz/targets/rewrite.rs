//! Device lists of a container, rewritten to the guest's numbers.
#![no_main]

#[path = "../../../agent/tests/rewrite/body.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::run(bytes));
