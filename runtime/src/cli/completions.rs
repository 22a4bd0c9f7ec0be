//! `kiai completions`: a shell's completion script.

use clap::CommandFactory;

use crate::cli::Cli;
use crate::cli::command_error::CommandError;
use crate::cli::format;

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// Which shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn perform(self) -> Result<u8, CommandError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "kiai", &mut script);
        format::print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
