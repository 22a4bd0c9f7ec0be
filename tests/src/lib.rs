//! The harness of the end-to-end tests: a `kiai` to call, deadlines, and a count of what is left behind.
//!
//! A test is a [`scenario`]: it gets a [`Kiai`] with a state directory of its own and must leave the machine as
//! it was. Scenarios run one at a time, because what is counted ([`census`]) is the whole machine's. Nothing
//! here sleeps: whatever is waited for is an event with a deadline.
//!
//! What it needs from outside: root, KVM, `kiai` on PATH, `KIAI_KERNEL` and `KIAI_INITRD`,
//! `KIAI_TEST_IMAGES`, a folder with `busybox/` and `debian/` (OCI layouts), `debian.tar` (docker archive) and
//! `busybox-rootfs/`, and `KIAI_ROOT`, an image store that has these already. `KIAI_TEST_VCPUS` says how many
//! vCPUs a pod has that does not ask for a number. `KIAI_TEST_CONTAINERD` is the folder of a containerd 2, without which
//! tests of it are skipped. `cargo xtask test` provides all of it.
#![expect(clippy::unwrap_used, reason = "in a test, what goes wrong is a panic")]

pub mod census;
pub mod containerd;
pub mod cri;
mod evidence;
pub mod fixture;
pub mod freeze;
pub mod kiai;
pub mod process;
pub mod stream;
pub mod terminal;

use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::sync::Mutex;

pub use kiai::Kiai;
pub use process::Finished;
pub use process::Running;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs one test: alone, with a fresh state directory, and with the machine counted before and after.
pub fn scenario(test: impl FnOnce(&Kiai)) {
    // A scenario that failed has cleaned up behind itself; the next one may run.
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let kiai = Kiai::new();
    let before = census::take(kiai.root());
    let run = || {
        let outcome = catch_unwind(AssertUnwindSafe(|| test(&kiai)));
        if outcome.is_err() {
            evidence::collect();
        }
        outcome
    };
    let outcome = evidence::watched(run);
    evidence::forget();
    census::await_processes(&before);
    let mut left: Vec<_> = census::take(kiai.root()).difference(&before).cloned().collect();
    left.extend(kiai.containers_left());
    kiai.discard();
    match outcome {
        Err(panic) => resume_unwind(panic),
        Ok(()) => assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  ")),
    }
}
