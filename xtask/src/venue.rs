//! Where microVMs run: on this machine's own KVM if it can run a stock kernel, else in the lab.
//!
//! The product decides: `kiai check` looks at KVM in the same way for its users.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{build, step};

/// Overrides what is found out about the machine.
const OVERRIDE: &str = "KIAI_LAB";
/// The check of `kiai check` that looks at KVM.
const KVM: &str = "kvm";

/// Where microVMs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Venue {
    /// On this machine's KVM.
    Machine,
    /// In the emulated machine.
    Lab,
}

/// What `kiai check` found about this machine's KVM.
#[derive(Debug, Deserialize)]
struct Finding {
    name: String,
    outcome: String,
    detail: String,
}

/// Decides and says why. `KIAI_LAB=always|never` overrides what is found out.
pub(crate) fn choose() -> Result<Venue> {
    let is_root = rustix::process::geteuid().is_root();
    let (venue, why) = decide(env::var(OVERRIDE).ok().as_deref(), is_root, || ask(&build::kiai()?))?;
    let name = match venue {
        Venue::Machine => "on this machine's own KVM",
        Venue::Lab => "in the lab",
    };
    step::say(&format!("microVMs run {name}: {why}"));
    Ok(venue)
}

/// The place and the reason, from the override and what is known of KVM, which is asked for only if it matters.
/// A machine that shall be used and cannot is an error: every microVM on it would fail, and less clearly.
fn decide(
    wanted: Option<&str>,
    is_root: bool,
    kvm: impl FnOnce() -> Result<Finding>,
) -> Result<(Venue, String)> {
    let never = match wanted {
        Some("always") => return Ok((Venue::Lab, format!("{OVERRIDE}=always"))),
        Some("never") => true,
        None | Some("") => false,
        Some(other) => bail!("{OVERRIDE}={other}: it is `always`, `never` or not set"),
    };
    let kvm = kvm()?;
    match (kvm.outcome == "good", never) {
        (true, _) if !is_root => bail!(
            "microVMs on this machine's own KVM need root, for mounts and networks: run this as root, or with \
             {OVERRIDE}=always"
        ),
        (true, _) => Ok((Venue::Machine, kvm.detail)),
        (false, false) => Ok((Venue::Lab, kvm.detail)),
        (false, true) => bail!("{OVERRIDE}=never, and no microVM runs on this machine: {}", kvm.detail),
    }
}

/// Asks the program `kiai` about this machine's KVM. Its exit status counts for nothing here: it speaks of more.
fn ask(kiai: &Path) -> Result<Finding> {
    let output = Command::new(kiai)
        .args(["check", "--format", "json"])
        .output()
        .with_context(|| kiai.display().to_string())?;
    finding(&output.stdout).with_context(|| {
        format!("{} check: {}", kiai.display(), String::from_utf8_lossy(&output.stderr).trim())
    })
}

fn finding(findings: &[u8]) -> Result<Finding> {
    let findings: Vec<Finding> = serde_json::from_slice(findings)?;
    findings.into_iter().find(|finding| finding.name == KVM).context("it says nothing of KVM")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kvm(outcome: &str) -> Result<Finding> {
        Ok(Finding { name: KVM.into(), outcome: outcome.into(), detail: format!("it is {outcome}") })
    }

    #[test]
    fn a_usable_kvm_is_used_and_another_is_not() {
        for unset in [None, Some("")] {
            assert_eq!(decide(unset, true, || kvm("good")).unwrap(), (Venue::Machine, "it is good".into()));
            assert_eq!(decide(unset, true, || kvm("failed")).unwrap(), (Venue::Lab, "it is failed".into()));
        }
        assert!(decide(None, true, || bail!("kiai does not start")).is_err());
    }

    #[test]
    fn the_lab_can_be_asked_for_without_a_look_at_kvm() {
        let (venue, why) = decide(Some("always"), true, || unreachable!("nobody asks")).unwrap();
        assert_eq!((venue, why.as_str()), (Venue::Lab, "KIAI_LAB=always"));
    }

    #[test]
    fn a_machine_that_shall_be_used_and_cannot_is_refused_with_the_reason() {
        assert_eq!(decide(Some("never"), true, || kvm("good")).unwrap().0, Venue::Machine);
        let refusal = decide(Some("never"), true, || kvm("failed")).unwrap_err().to_string();
        assert!(refusal.contains("KIAI_LAB=never") && refusal.contains("it is failed"), "{refusal}");
        let refusal = decide(Some("never"), false, || kvm("good")).unwrap_err().to_string();
        assert!(refusal.contains("need root"), "{refusal}");
        let refusal = decide(Some("yes"), true, || kvm("good")).unwrap_err().to_string();
        assert!(refusal.contains("KIAI_LAB=yes"), "{refusal}");
    }

    #[test]
    fn the_finding_about_kvm_is_found_among_the_others() {
        let findings = br#"[{"name":"processor","outcome":"good","detail":"x86-64","hint":null},
            {"name":"kvm","outcome":"failed","detail":"none","hint":"have one"}]"#;
        let kvm = finding(findings).unwrap();
        assert_eq!((kvm.outcome.as_str(), kvm.detail.as_str()), ("failed", "none"));
        assert!(finding(b"[]").is_err() && finding(b"").is_err());
    }
}
