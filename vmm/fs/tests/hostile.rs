//! The shared directory against a driver that means harm, and against any FUSE requests.

use kiai_devices::hostile_tests;
use kiai_devices::testing::Counting;
use kiai_devices::testing::random_inputs;
use kiai_devices::testing::replay;
use kiai_fs::testing::FS;
use kiai_fs::testing::requests;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

hostile_tests!(FS);

#[test]
fn no_request_leads_out_of_the_share_or_stays_unanswered() {
    random_inputs("fs", 400, requests);
}

#[test]
fn what_once_went_wrong_does_not_again() {
    replay("fs", requests);
}
