//! The I/O APIC's registers and pins.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiai_devices::testing::fuzz::ioapic(bytes));
