//! `kiai top`: lists the processes of a container.
//!
//! They are the guest's, and the host has no list of them: the container's own `ps` prints it.

use anyhow::anyhow;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::exec::Exec;

/// List the processes of a container, with its own ps
#[derive(Debug, clap::Args)]
pub(super) struct Top {
    /// Name or id
    container: String,
    /// Options of ps [default: -ef]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// Exit status of `exec` for a program that does not exist.
const NOT_FOUND: u8 = 127;

impl Top {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let mut command = vec!["ps".to_owned()];
        if self.options.is_empty() {
            command.push("-ef".to_owned());
        }
        command.extend(self.options);
        match Exec::plain(&self.container, command).perform(context).await {
            Err(error) if error.status() == NOT_FOUND => Err(CommandError::own(anyhow!(
                "the image of container {} has no program ps, which kiai top runs in it: the processes are the guest's",
                self.container
            ))),
            other => other,
        }
    }
}
