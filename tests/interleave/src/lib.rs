//! Runs a scenario of several threads in many orders. The scenario's threads, locks and tasks are those of
//! [`shuttle`], which runs one at a time and chooses at each of their operations who goes on.
//!
//! What is checked is the product's own source, compiled a second time with these in the place of the standard ones:
//! a module that names `super::os::Mutex` has one `os` in the product and another in its check.

use shuttle::Config;
use shuttle::MaxSteps;
use shuttle::Runner;
use shuttle::scheduler::PctScheduler;
use shuttle::scheduler::RandomScheduler;

pub use ::shuttle_parking_lot as parking_lot;
pub use shuttle;

/// Orders of each scenario in a run of the tests.
const ORDERS: usize = 4000;
/// Points at which the order may change that a bug of this kind takes, and one more.
const DEPTH: usize = 3;
/// A scenario that is longer has a thread that waits for what does not come.
const MOST_STEPS: usize = 50_000;

/// Runs `scenario` in many orders: half of them at random, half with few changes at random places, which finds what
/// a fair order does not. Panics at the first in which an assertion fails, everybody waits, or the end does not come;
/// what is printed then has the order in it, for [`shuttle::replay`].
///
/// `KIAI_INTERLEAVINGS` is how many orders there are, each time others; without it they are always the same few.
pub fn check(scenario: impl Fn() + Send + Sync + 'static) {
    let scenario = std::sync::Arc::new(scenario);
    let deeper = std::env::var("KIAI_INTERLEAVINGS").ok();
    let orders =
        deeper.as_ref().map_or(ORDERS, |number| number.parse().expect("KIAI_INTERLEAVINGS: a number"));
    let seed = if deeper.is_some() { shuttle_seed() } else { 0 };
    let mut config = Config::new();
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    config.stack_size = 256 << 10;
    config.silence_warnings = true;
    let (random, few) = (scenario.clone(), scenario);
    let half = orders.div_ceil(2);
    Runner::new(RandomScheduler::new_from_seed(seed, half), config.clone()).run(move || random());
    Runner::new(PctScheduler::new_from_seed(seed, DEPTH, half), config).run(move || few());
}

/// Another one each time.
fn shuttle_seed() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shuttle::sync::atomic::AtomicU32;
    use shuttle::sync::atomic::Ordering;
    use shuttle::sync::mpsc;
    use shuttle::thread;

    use super::*;

    #[test]
    #[should_panic(expected = "an update was lost")]
    fn a_lost_update_is_found() {
        check(|| {
            let number = Arc::new(AtomicU32::new(0));
            let other = number.clone();
            let thread =
                thread::spawn(move || other.store(other.load(Ordering::SeqCst) + 1, Ordering::SeqCst));
            number.store(number.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread.join().unwrap();
            assert_eq!(number.load(Ordering::SeqCst), 2, "an update was lost");
        });
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn waiting_for_ever_is_found() {
        check(|| {
            let (_sender, receiver) = mpsc::channel::<()>();
            let _ = receiver.recv();
        });
    }

    #[test]
    #[should_panic(expected = "exceeded")]
    fn a_loop_without_end_is_found() {
        check(|| {
            loop {
                thread::yield_now();
            }
        });
    }
}
