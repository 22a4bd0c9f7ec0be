//! The serial port's registers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiai_devices::testing::fuzz::serial(bytes));
