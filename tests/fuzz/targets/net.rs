//! Frames in both directions.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiai_devices::testing::fuzz::net(bytes));
