//! `kiai kill`: sends a signal to a container's process.

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::exec::running_task;
use crate::cli::format;
use crate::cli::signals;

/// Send a signal to containers
#[derive(Debug, clap::Args)]
pub(super) struct Kill {
    /// Name or number
    #[arg(short, long, default_value = "KILL", value_parser = signals::parse)]
    signal: u32,
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Kill {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        each(&self.containers, async |name| {
            let (_, record) = context.store.find(name)?;
            let task = running_task(&record).await?;
            task.kill("", self.signal, false).await?;
            Ok(format::print(&format!("{name}\n"))?)
        })
        .await
    }
}
