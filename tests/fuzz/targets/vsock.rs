//! Packets of a guest, and the host's side of its sockets.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiai_devices::testing::fuzz::vsock(bytes));
