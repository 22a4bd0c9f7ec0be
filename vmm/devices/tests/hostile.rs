//! Every device against a driver that means harm. A new device is a line in `for_each_device`.

use kiai_devices::hostile_tests;
use kiai_devices::testing::Counting;
use kiai_devices::testing::devices::*;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

kiai_devices::for_each_device!(hostile_tests);
