//! `kiai kill`: sends a signal to a container's process.

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::events;
use crate::cli::exec::running_task;
use crate::cli::format;
use crate::cli::signals;
use crate::cli::stop;

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
            let (container, record) = context.store.find(name)?;
            let task = running_task(&record).await?;
            if self.signal == signals::KILL || signals::parse(&record.stop_signal) == Ok(self.signal) {
                stop::mark_stopped(&container)?;
            }
            task.kill("", self.signal, false).await?;
            events::tell(context, &record, "kill", &[("signal", self.signal.to_string())]);
            Ok(format::print(&format!("{name}\n"))?)
        })
        .await
    }
}
