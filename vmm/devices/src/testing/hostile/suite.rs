//! All that every device must survive, as one test a property. One line makes a device's tests.

use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::refuses_malformed_chains;
use super::survives;
use crate::testing::Census;
use crate::testing::Driver;
use crate::testing::Machine;
use crate::testing::Subject;
use crate::testing::log_lines;
use crate::testing::peak;

/// Sessions of one test. `KIAI_SESSIONS` makes it another number.
const SESSIONS: u64 = 400;
/// Bytes a session is made of.
const LONGEST: u64 = 2000;
/// Times a rule is broken to see what is logged.
const BROKEN: usize = 100;
/// Heap a device may take while it is driven, and keep when it is gone (caches of the process, not of it).
const MOST_HEAP: usize = 32 << 20;
const MOST_KEPT: usize = 1 << 20;
/// After this a session hangs. None takes a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the tests of one device: a module with its name, a [`Subject`].
#[macro_export]
macro_rules! hostile_tests {
    ($subject:ident) => {
        #[allow(non_snake_case, clippy::allow_attributes, reason = "called like the constant it is for")]
        mod $subject {
            use super::$subject as subject;

            #[test]
            fn a_hostile_driver_harms_nobody_else_and_a_reset_repairs_the_device() {
                $crate::testing::random_sessions(&subject);
            }

            #[test]
            fn what_once_went_wrong_does_not_again() {
                let name = format!("transport_{}", subject.name);
                $crate::testing::replay(&name, |bytes| $crate::testing::survives(&subject, bytes));
            }

            #[test]
            fn a_driver_that_breaks_the_rules_for_ever_does_not_flood_the_log() {
                $crate::testing::quiet_sessions(&subject);
            }

            #[test]
            fn malformed_chains_stop_it_until_reset() {
                $crate::testing::malformed_sessions(&subject);
            }
        }
    };
}

/// Random sessions, one after the other, the same every time: each ends, and neither heap nor descriptors nor
/// threads grow.
pub fn random_sessions(subject: &'static Subject) {
    let sessions = std::env::var("KIAI_SESSIONS").map_or(SESSIONS, |number| number.parse().unwrap());
    alone(move |session| {
        let run = |seeds: std::ops::Range<u64>| {
            for seed in seeds {
                session.begins(&format!("{} with seed {seed}", subject.name));
                survives(subject, &random_bytes(seed));
            }
        };
        // What is made once and kept, a sanitizer's own files included.
        run(0..sessions / 10);
        let before = Census::take();
        run(0..sessions);
        let used = peak() - before.heap;
        assert!(used < MOST_HEAP, "{} took {used} bytes of heap", subject.name);
        let after = Census::take();
        let left = after.heap.saturating_sub(before.heap);
        assert!(left < MOST_KEPT, "{} left {left} bytes of heap behind", subject.name);
        let held = |census: Census| (census.descriptors, census.threads);
        assert_eq!(held(after), held(before), "{} left descriptors or threads behind", subject.name);
    });
}

/// Every malformed chain in every queue that can tell.
pub fn malformed_sessions(subject: &'static Subject) {
    alone(move |session| {
        for &(queue, flags) in subject.refusing {
            session.begins(&format!("{} queue {queue}", subject.name));
            let machine = Machine::new();
            let plugged = (subject.plug)(&machine);
            refuses_malformed_chains(&machine, plugged.slot, queue, flags, subject.works);
            machine.assert_unharmed();
        }
    });
}

/// A driver breaks the rules, resets the device and breaks them again; another one's queue is nowhere.
pub fn quiet_sessions(subject: &'static Subject) {
    alone(move |session| {
        let machine = Machine::new();
        let plugged = (subject.plug)(&machine);
        let before = log_lines();
        for round in 0..BROKEN {
            session.begins(&format!("{} in round {round}", subject.name));
            let driver = Driver::negotiate(&machine, plugged.slot, 0);
            let mut queues = driver.queues();
            driver.ready();
            for &(queue, _) in subject.refusing {
                queues[usize::from(queue)].make_available(0xffff);
                queues[usize::from(queue)].notify();
            }
            driver.wait_needs_reset();
            driver.reset();
        }
        let lines = log_lines() - before;
        assert!(lines < BROKEN / 2, "{}: {lines} lines for {BROKEN} broken rules", subject.name);
    });
}

/// Runs `body` with every file of the corpus `name` that is kept.
pub fn replay(name: &str, body: fn(&[u8])) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/corpus/");
    let folder = std::path::Path::new(folder).join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty(), "{} has no files", folder.display());
    files.sort();
    alone(move |session| {
        for file in files {
            session.begins(&file.display().to_string());
            body(&std::fs::read(file).unwrap());
        }
    });
}

/// Random input for `body`, the same every time.
pub fn random_inputs(name: &'static str, count: u64, body: fn(&[u8])) {
    alone(move |session| {
        for seed in 0..count {
            session.begins(&format!("{name} with seed {seed}"));
            body(&random_bytes(seed));
        }
    });
}

/// Says where a run is, to whoever watches whether it goes on.
struct Progress(std::sync::mpsc::Sender<String>);

impl Progress {
    fn begins(&self, what: &str) {
        // Nobody listens once it has failed.
        let _ = self.0.send(what.to_owned());
    }
}

/// Runs on a thread of its own, while no other test of this kind does (they count what the process holds), and
/// fails if it panics, if a device's thread does, or if it does not go on.
fn alone(run: impl FnOnce(&Progress) + Send + 'static) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = panics();
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || run(&Progress(sender)));
    let mut last = "the beginning".to_owned();
    loop {
        match receiver.recv_timeout(PATIENCE) {
            Ok(what) => last = what,
            Err(RecvTimeoutError::Timeout) => panic!("{last} hangs"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(thread.join().is_ok(), "{last} failed");
    assert_eq!(panics(), before, "a device's thread panicked; the last run was {last}");
}

/// Panics of all threads so far: a device's thread takes nobody with it.
fn panics() -> usize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            report(panic);
        }));
    });
    PANICS.load(Ordering::SeqCst)
}

/// What random session number `seed` is made of (xorshift64: reproducible).
pub fn random_bytes(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    // The first numbers of neighbouring seeds are alike.
    for _ in 0..8 {
        next();
    }
    let length = next() % LONGEST;
    (0..length).map(|_| next().to_le_bytes()[3]).collect()
}
