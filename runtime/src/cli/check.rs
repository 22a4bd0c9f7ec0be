//! `kiai check`: prints the findings of [`crate::check`].

use std::fmt::Write;

use crate::check;
use crate::check::Outcome;
use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::format;
use crate::cli::format::Format;

/// Find out whether this machine can run microVMs, and if not, why
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

impl Check {
    pub(super) fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let findings = check::all(context.store.paths());
        let failed = findings.iter().any(|finding| finding.outcome == Outcome::Failed);
        match self.format {
            Format::Json => format::print_json(&findings)?,
            Format::Table => {
                let mut text = String::new();
                for finding in &findings {
                    let mark = match finding.outcome {
                        Outcome::Good => "ok  ",
                        Outcome::Doubtful => "warn",
                        Outcome::Failed => "FAIL",
                    };
                    let _ = writeln!(text, "{mark}  {:<18} {}", finding.name, finding.detail);
                    if let Some(hint) = &finding.hint {
                        let _ = writeln!(text, "      {:<18} -> {hint}", "");
                    }
                }
                let verdict = if failed { "cannot run microVMs" } else { "can run microVMs" };
                let _ = writeln!(text, "This machine {verdict}.");
                format::print(&text)?;
            }
        }
        Ok(u8::from(failed))
    }
}
