//! What goes between this process and the one that runs tests: a line of JSON each.

use serde::{Deserialize, Serialize};

/// To the process that runs tests: run this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Its whole name.
    pub(crate) test: String,
    /// vCPUs of each pod that does not say how many it wants.
    pub(crate) vcpus: u8,
}

/// From it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// A file of evidence about the test that runs: its name, and its text or the end of it.
    File { name: String, text: String },
    /// The test has ended.
    Ended(Ended),
}

/// The end of one test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) seconds: f64,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Passed,
    /// It cannot run where it was started, and says why.
    Skipped(String),
    /// An assertion failed, the process died, or it came to no end.
    Failed(String),
}
