//! Writes results down as they come: per test a line, evidence of failures, the ledger of repetitions, JUnit XML.
//!
//! Everything is below `e2e/` in the target folder and is that of the last run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::event::Outcome;
use super::plan::Case;
use super::verdict;
use crate::{cache, step, workspace};

/// How much of a console goes into the ledger.
const LEDGER_CONSOLE_LINES: usize = 12;
/// The list of tests that may be skipped, each with its reason.
const REVIEWED: &str = "tests/skips.toml";

/// Results of a run, shared by all workers.
pub(crate) struct Report {
    folder: PathBuf,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    results: Vec<TestResult>,
    ledger: Vec<serde_json::Value>,
}

/// The end of one case.
#[derive(Debug, Serialize, Deserialize)]
struct TestResult {
    case: String,
    outcome: Outcome,
    seconds: f64,
}

/// What came out.
pub(crate) struct Summary {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Tests that were skipped, and why.
    pub(crate) skipped: Vec<(String, String)>,
    pub(crate) repetitions: usize,
}

impl Report {
    /// Starts anew: what the last run wrote is removed.
    pub(crate) fn begin() -> Result<Self> {
        let folder = folder();
        cache::remove_tree(&folder)?;
        fs::create_dir_all(folder.join("evidence")).with_context(|| folder.display().to_string())?;
        fs::write(folder.join("ledger.jsonl"), "")?;
        Ok(Self { folder, started: Instant::now(), state: Mutex::default() })
    }

    /// Writes down how a case ended. `files` are evidence and are kept if it failed.
    pub(crate) fn ended(
        &self,
        case: &Case,
        outcome: Outcome,
        seconds: f64,
        files: &[(String, String)],
    ) -> Result<()> {
        let mut state = self.state.lock().expect("no worker panics");
        let case = case.to_string();
        match &outcome {
            Outcome::Passed => step::say(&format!("  passed  {seconds:5.1} s  {case}")),
            Outcome::Skipped(reason) => step::say(&format!("  skipped {seconds:5.1} s  {case}: {reason}")),
            Outcome::Failed(reason) => {
                let kept = self.keep(&case, files)?;
                step::say(&format!("  FAILED  {seconds:5.1} s  {case}: {reason}"));
                step::say(&format!("          evidence: {}", kept.display()));
            }
        }
        state.results.push(TestResult { case, outcome, seconds });
        Ok(())
    }

    /// Writes into the ledger that a case is run again.
    pub(crate) fn repeated(
        &self,
        case: &Case,
        reason: &str,
        seconds: f64,
        files: &[(String, String)],
    ) -> Result<()> {
        let mut state = self.state.lock().expect("no worker panics");
        let case = format!("{case} (first attempt)");
        let kept = self.keep(&case, files)?;
        let console = files.iter().find(|(name, _)| name == "lab-console.txt").map(|(_, text)| text.lines());
        let console: Vec<_> = console.into_iter().flatten().collect();
        let tail = console[console.len().saturating_sub(LEDGER_CONSOLE_LINES)..].join("\n");
        let entry = json!({ "test": case, "reason": reason, "console": tail, "seconds": seconds });
        let mut ledger = fs::OpenOptions::new().append(true).open(self.folder.join("ledger.jsonl"))?;
        writeln!(ledger, "{entry}")?;
        step::say(&format!("  again   {seconds:5.1} s  {case}: the lab failed: {reason}"));
        step::say(&format!("          evidence: {}", kept.display()));
        state.ledger.push(entry);
        Ok(())
    }

    fn keep(&self, case: &str, files: &[(String, String)]) -> Result<PathBuf> {
        let name: String = case.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let folder = self.folder.join("evidence").join(name);
        fs::create_dir_all(&folder)?;
        for (name, text) in files {
            // The name came from where the test ran.
            let name: String = name.chars().map(|c| if c == '/' { '-' } else { c }).collect();
            fs::write(folder.join(name), text)?;
        }
        Ok(folder)
    }

    /// Writes the files that describe the whole run, and prints the ledger and the slowest tests.
    pub(crate) fn end(self) -> Result<Summary> {
        let State { mut results, ledger } = self.state.into_inner().expect("no worker panics");
        results.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let seconds = self.started.elapsed().as_secs_f64();
        fs::write(self.folder.join("results.json"), serde_json::to_vec_pretty(&results)?)?;
        fs::write(self.folder.join("junit.xml"), junit(&results, seconds))?;
        remember(&results)?;

        let slowest: Vec<_> =
            results.iter().take(5).map(|one| format!("{} {:.0} s", one.case, one.seconds)).collect();
        step::say(&format!(
            "end-to-end: {} tests in {seconds:.0} s; the slowest: {}",
            results.len(),
            slowest.join(", ")
        ));
        step::say(&format!("ledger: {} repetitions (at most {})", ledger.len(), verdict::MOST_REPETITIONS));
        ledger.iter().for_each(|entry| step::say(&format!("  {entry}")));
        step::say(&format!("results, JUnit XML and evidence: {}", self.folder.display()));

        let mut summary = Summary { passed: 0, failed: 0, skipped: Vec::new(), repetitions: ledger.len() };
        for result in results {
            match result.outcome {
                Outcome::Passed => summary.passed += 1,
                Outcome::Failed(_) => summary.failed += 1,
                Outcome::Skipped(reason) => summary.skipped.push((result.case, reason)),
            }
        }
        Ok(summary)
    }
}

/// Tests that may be skipped where skips are failures.
#[derive(Deserialize)]
pub(crate) struct Reviewed {
    skip: Vec<ReviewedSkip>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReviewedSkip {
    test: String,
    reason: String,
}

impl Reviewed {
    /// Reads the list.
    pub(crate) fn read() -> Result<Self> {
        let reviewed: Self = toml::from_str(&workspace::read(REVIEWED)?).context(REVIEWED)?;
        for skip in &reviewed.skip {
            anyhow::ensure!(!skip.reason.is_empty(), "{REVIEWED}: {}: there is no reason", skip.test);
        }
        Ok(reviewed)
    }

    /// Whether this test's name is on it.
    pub(crate) fn allows(&self, test: &str) -> bool {
        self.skip.iter().any(|skip| skip.test == test)
    }
}

fn folder() -> PathBuf {
    workspace::target().join("e2e")
}

/// The cases that failed in the last run.
pub(crate) fn failed_last_time() -> Result<BTreeSet<String>> {
    let path = folder().join("results.json");
    let results = fs::read(&path).with_context(|| format!("{}: there was no run yet", path.display()))?;
    let results: Vec<TestResult> = serde_json::from_slice(&results).context("results of the last run")?;
    let failed = results.into_iter().filter(|result| matches!(result.outcome, Outcome::Failed(_)));
    Ok(failed.map(|result| result.case).collect())
}

fn durations_file() -> PathBuf {
    cache::root().join("e2e-durations.json")
}

/// The seconds each case took when it last passed here. They only order the tests.
pub(crate) fn durations() -> BTreeMap<String, f64> {
    let known = fs::read(durations_file()).ok();
    known.and_then(|known| serde_json::from_slice(&known).ok()).unwrap_or_default()
}

fn remember(results: &[TestResult]) -> Result<()> {
    let mut durations = durations();
    for result in results.iter().filter(|result| result.outcome == Outcome::Passed) {
        durations.insert(result.case.clone(), result.seconds);
    }
    fs::write(durations_file(), serde_json::to_vec(&durations)?).context("durations of tests")
}

/// The results in the form that CI systems read.
fn junit(results: &[TestResult], seconds: f64) -> String {
    let count = |wanted: fn(&Outcome) -> bool| results.iter().filter(|one| wanted(&one.outcome)).count();
    let (failures, skipped) = (
        count(|outcome| matches!(outcome, Outcome::Failed(_))),
        count(|outcome| matches!(outcome, Outcome::Skipped(_))),
    );
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"e2e\" tests=\"{}\" \
         failures=\"{failures}\" skipped=\"{skipped}\" time=\"{seconds:.3}\">\n",
        results.len()
    );
    for TestResult { case, outcome, seconds } in results {
        let (module, name) = case.split_once("::").unwrap_or(("", case));
        let (module, name) = (escape(module), escape(name));
        // Writing to a string does not fail.
        let _ = write!(xml, "  <testcase classname=\"{module}\" name=\"{name}\" time=\"{seconds:.3}\"");
        let _ = match outcome {
            Outcome::Passed => writeln!(xml, "/>"),
            Outcome::Skipped(reason) => {
                writeln!(xml, "><skipped message=\"{}\"/></testcase>", escape(reason))
            }
            Outcome::Failed(reason) => {
                writeln!(xml, "><failure message=\"{}\"/></testcase>", escape(reason))
            }
        };
    }
    xml + "</testsuite>\n"
}

/// Text inside an XML attribute. Characters XML 1.0 has no place for become spaces.
fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            c if c.is_control() => " ".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junit_has_every_test_and_is_well_formed_whatever_the_reasons_say() {
        let result = |case: &str, outcome| TestResult { case: case.into(), outcome, seconds: 1.5 };
        let xml = junit(
            &[
                result("run::a", Outcome::Passed),
                result("run::b (2 vCPUs)", Outcome::Failed("\"<&>\"\u{1b}[0m".into())),
                result("net::c", Outcome::Skipped("no tun".into())),
            ],
            3.0,
        );
        assert!(xml.contains("tests=\"3\" failures=\"1\" skipped=\"1\""), "{xml}");
        assert!(xml.contains("message=\"&quot;&lt;&amp;&gt;&quot; [0m\""), "{xml}");
        assert_eq!(xml.matches("<testcase ").count(), 3);
    }

    #[test]
    fn a_skip_is_reviewed_by_name_and_with_a_reason() {
        let reviewed = Reviewed::read().unwrap();
        assert!(!reviewed.allows("no::such_test"));
    }
}
