//! FUSE requests to a shared directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiai_fs::testing::requests(bytes));
