//! A driver that means harm, and the memory device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiai_devices::testing::survives(
    &kiai_devices::testing::devices::MEM,
    bytes
));
