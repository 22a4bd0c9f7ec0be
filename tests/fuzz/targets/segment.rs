//! Configuration space and BARs of several PCI functions.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiai_devices::testing::fuzz::segment(bytes));
