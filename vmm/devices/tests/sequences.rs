//! Sequences of operations that a fuzzer has found worth keeping, and random ones.

use kiai_devices::bus::BusDevice;
use kiai_devices::ioapic::IoApic;
use kiai_devices::testing::FakePlatform;
use kiai_devices::testing::fuzz;
use kiai_devices::testing::log_lines;
use kiai_devices::testing::random_inputs;
use kiai_devices::testing::replay;

macro_rules! sequences {
    ($name:ident, $rule:ident, $count:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn $rule() {
                random_inputs(stringify!($name), $count, fuzz::$name);
            }

            #[test]
            fn what_once_went_wrong_does_not_again() {
                replay(stringify!($name), fuzz::$name);
            }
        }
    };
}

sequences!(block, the_disk_holds_what_the_driver_was_told, 400);
sequences!(ioapic, every_pin_can_be_set_up_again, 2000);
sequences!(net, every_frame_is_taken_or_stops_the_device, 200);
sequences!(segment, functions_that_are_put_apart_answer, 2000);
sequences!(serial, the_port_prints_once_it_is_set_up, 2000);
sequences!(vsock, every_packet_is_taken_and_no_stream_hangs, 400);

#[test]
fn routes_the_host_refuses_do_not_flood_the_log() {
    let platform = FakePlatform::new();
    let apic = IoApic::new(platform.platform().interrupts.as_ref()).unwrap();
    platform.refuse(true);
    let before = log_lines();
    apic.write(0, &[0x10]).unwrap();
    for message in 0..1000u32 {
        apic.write(0x10, &message.to_le_bytes()).unwrap();
    }
    // Other tests of this program have their own few lines.
    assert!(log_lines() - before < 500);
}
