//! What the end of a test means. Pure: the rules by which a run is believed.
//!
//! - A test that ended has its outcome, whatever happened around it.
//! - A test that was cut short by a lab that itself says it failed is run again, once.
//! - Everything else that keeps a test from its end is a failure of that test: a lab that says nothing any more, or that
//!   is gone without its kernel's saying why, is a hang or a crash which the product may have caused.
//! - A run with more than [`MOST_REPETITIONS`] repetitions has failed.

use super::event::Outcome;
use crate::lab::Gone;

/// How many tests or lab starts may be repeated in a run that passes.
pub(crate) const MOST_REPETITIONS: usize = 2;

/// How the attempt to run a test ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It told its outcome.
    Outcome(Outcome),
    /// The lab did not come up, or went while the test ran.
    Lab(Gone),
    /// Nothing was heard of it within its limit and more.
    Silence(Gone),
}

/// What follows from it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Final(Outcome),
    /// Run it again, and write into the ledger why.
    Repeat(String),
}

/// Decides about the end of a test that was repeated before (`repeated`) or not.
pub(crate) fn judge(end: &End, repeated: bool) -> Verdict {
    match end {
        End::Outcome(outcome) => Verdict::Final(outcome.clone()),
        End::Lab(gone) if gone.lab_failed && !repeated => Verdict::Repeat(gone.reason.clone()),
        End::Lab(gone) if gone.lab_failed => {
            Verdict::Final(Outcome::Failed(format!("its lab failed twice; the second time: {}", gone.reason)))
        }
        End::Lab(gone) => Verdict::Final(Outcome::Failed(format!(
            "its lab is gone and its kernel does not say why: {}",
            gone.reason
        ))),
        End::Silence(gone) => Verdict::Final(Outcome::Failed(format!("hang: {}", gone.reason))),
    }
}

/// Whether a run passes.
pub(crate) fn passes(failed: usize, refused_skips: usize, repetitions: usize) -> bool {
    failed == 0 && refused_skips == 0 && repetitions <= MOST_REPETITIONS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(lab_failed: bool) -> Gone {
        Gone { lab_failed, reason: "why".into(), console: "Kernel panic".into() }
    }

    #[test]
    fn a_test_that_ended_has_its_outcome() {
        for outcome in [
            Outcome::Passed,
            Outcome::Skipped("no device".into()),
            // Words that once made a failure the lab's.
            Outcome::Failed("no answer within 60 s".into()),
            Outcome::Failed("the microVM ended: TripleFault (triple fault)".into()),
            Outcome::Failed("did not end within 300s".into()),
        ] {
            for repeated in [false, true] {
                assert_eq!(judge(&End::Outcome(outcome.clone()), repeated), Verdict::Final(outcome.clone()));
            }
        }
    }

    #[test]
    fn a_test_is_repeated_once_and_only_if_the_lab_says_that_it_failed() {
        assert_eq!(judge(&End::Lab(gone(true)), false), Verdict::Repeat("why".into()));
        for (end, repeated) in [
            (End::Lab(gone(true)), true),
            (End::Lab(gone(false)), false),
            (End::Silence(gone(false)), false),
            (End::Silence(gone(true)), false),
        ] {
            let verdict = judge(&end, repeated);
            assert!(matches!(verdict, Verdict::Final(Outcome::Failed(_))), "{end:?}: {verdict:?}");
        }
    }

    #[test]
    fn a_run_passes_with_few_repetitions_and_nothing_else() {
        assert!(passes(0, 0, 0) && passes(0, 0, MOST_REPETITIONS));
        assert!(!passes(0, 0, MOST_REPETITIONS + 1));
        assert!(!passes(1, 0, 0) && !passes(0, 1, 0));
    }
}
