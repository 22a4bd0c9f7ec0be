//! A driver that means harm, and the shared directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiai_devices::testing::survives(&kiai_fs::testing::FS, bytes));
