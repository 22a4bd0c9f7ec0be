//! The tests that wait, handed out so that labs are reused and the longest come first.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::plan::{Case, Kind};

/// What a test takes that never ran here, in seconds.
const UNKNOWN_SECONDS: f64 = 25.0;

/// Tests that wait to be run, shared by all workers.
pub(crate) struct Queue {
    waiting: Mutex<Vec<Waiting>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Waiting {
    pub(crate) case: Case,
    /// It was cut short before by a lab that failed.
    pub(crate) repeated: bool,
    seconds: f64,
}

impl Queue {
    /// `durations` are the seconds each case took before.
    pub(crate) fn new(cases: Vec<Case>, durations: &BTreeMap<String, f64>) -> Self {
        let waiting = |case: Case| {
            let seconds = durations.get(&case.to_string()).copied().unwrap_or(UNKNOWN_SECONDS);
            Waiting { case, repeated: false, seconds }
        };
        Self { waiting: Mutex::new(cases.into_iter().map(waiting).collect()) }
    }

    /// The next test for a worker whose lab is of kind `ready`: the longest of that kind, else the longest of the kind
    /// that has most to do.
    pub(crate) fn take(&self, ready: Option<Kind>) -> Option<Waiting> {
        let mut waiting = self.waiting.lock().expect("no worker panics");
        let kind = ready.filter(|kind| waiting.iter().any(|one| one.case.kind == *kind)).or_else(|| {
            let mut work = BTreeMap::<Kind, f64>::new();
            waiting.iter().for_each(|one| *work.entry(one.case.kind).or_default() += one.seconds);
            work.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(kind, _)| kind)
        })?;
        let of_kind = waiting.iter().enumerate().filter(|(_, one)| one.case.kind == kind);
        let longest = of_kind.max_by(|a, b| a.1.seconds.total_cmp(&b.1.seconds))?.0;
        Some(waiting.remove(longest))
    }

    /// Puts back a test that a failed lab cut short.
    pub(crate) fn repeat(&self, waiting: Waiting) {
        self.waiting.lock().expect("no worker panics").push(Waiting { repeated: true, ..waiting });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labs_are_reused_and_the_longest_come_first() {
        let case = |test: &str, kind| Case { test: test.into(), vcpus: 1, kind };
        let cases = vec![
            case("short", Kind::Lab),
            case("long", Kind::Lab),
            case("a", Kind::Vfio),
            case("b", Kind::Vfio),
            case("c", Kind::Vfio),
        ];
        let durations = [("short", 1.0), ("long", 60.0)].map(|(name, seconds)| (name.to_owned(), seconds));
        let queue = Queue::new(cases, &durations.into());
        let name = |ready| queue.take(ready).map(|one| one.case.test);
        assert_eq!(name(Some(Kind::Lab)).as_deref(), Some("long"));
        assert!(name(None).is_some_and(|test| test != "short"), "the kind with most to do");
        assert_eq!(name(Some(Kind::Lab)).as_deref(), Some("short"));
        let left = queue.take(Some(Kind::Lab)).unwrap();
        assert_eq!(left.case.kind, Kind::Vfio);
        queue.repeat(left);
        assert!([queue.take(None), queue.take(None)].iter().flatten().any(|one| one.repeated));
        assert_eq!(queue.take(None), None);
    }
}
