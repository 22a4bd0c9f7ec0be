//! `kiai check`: whether this machine can run microVMs, and if not, the reason and the remedy.
//!
//! Every check is one function that returns one [`Finding`] and changes nothing. Reading order: [`all`].

mod host;
mod machine;

use serde::Serialize;

use crate::config::Config;
use crate::store::Paths;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The check passed.
    Good,
    /// A feature does not work, but microVMs run.
    Doubtful,
    /// No microVM runs.
    Failed,
}

/// The report of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The checked object.
    pub name: &'static str,
    /// The result.
    pub outcome: Outcome,
    /// The observation, on one line.
    pub detail: String,
    /// The remedy, unless the check passed.
    pub hint: Option<String>,
}

impl Finding {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Good, detail: detail.into(), hint: None }
    }

    fn doubtful(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Doubtful, detail: detail.into(), hint: Some(hint.into()) }
    }

    fn failed(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Failed, detail: detail.into(), hint: Some(hint.into()) }
    }
}

/// Runs every check, in the order in which a container's start needs the objects.
pub fn all(paths: &Paths) -> Vec<Finding> {
    let mut findings = vec![machine::processor(), machine::kvm(), host::root()];
    match Config::load() {
        Ok(config) => {
            findings.push(machine::kernel(&config));
            findings.push(machine::initrd(&config));
        }
        Err(error) => {
            let text = crate::failure::chain(&error);
            findings.push(Finding::failed("configuration", text, "correct the file it names"));
        }
    }
    findings.extend([
        host::directory("root directory", &paths.root),
        host::directory("state directory", &paths.state),
        host::overlay(&paths.root),
        host::cgroups(),
        host::tun(),
        host::plugins(),
        host::iptables(),
    ]);
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trouble_comes_with_a_hint() {
        let temporary = tempfile::TempDir::new().unwrap();
        let paths = Paths {
            root: temporary.path().join("root"),
            state: "/proc/nowhere".into(),
            namespace: "default".into(),
        };
        let findings = all(&paths);
        for finding in &findings {
            assert_eq!(finding.hint.is_some(), finding.outcome != Outcome::Good, "{finding:?}");
            assert!(!finding.detail.contains('\n'), "{finding:?}");
        }
        let state = findings.iter().find(|finding| finding.name == "state directory").unwrap();
        assert_eq!(state.outcome, Outcome::Failed);
        // A check must not make files.
        assert!(!paths.root.exists());
    }
}
