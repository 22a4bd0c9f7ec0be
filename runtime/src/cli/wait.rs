//! `kiai wait`: waits for containers to end and prints their exit statuses.

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::format;
use crate::cli::release::UNKNOWN_STATUS;
use crate::cli::state::State;
use crate::cli::stop;
use crate::cli::task::Task;
use crate::cli::task::TaskExit;
use crate::store::record::Status;

/// Wait for containers to end; print the exit status of each
#[derive(Debug, clap::Args)]
pub(super) struct Wait {
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        each(&self.containers, async |name| {
            let (container, record) = context.store.find(name)?;
            let ended = match State::of(&record).await {
                State::Exited(exit) => return Ok(format::print(&format!("{}\n", exit.code))?),
                State::Ended { code, at } => Some(TaskExit { status: code, at }),
                State::Creating | State::Created | State::Starting => {
                    anyhow::bail!("container {} has not started", record.name)
                }
                State::Lost => None,
                State::Running { .. } | State::Paused { .. } => match &record.status {
                    Status::Started { socket, .. } => {
                        let task = Task::connect(socket, &record.id).await?;
                        match task.wait("").await {
                            // It has just ended, and another command releases it.
                            Err(error) if error.is_lost() || error.is_not_found() => None,
                            ended => Some(ended?),
                        }
                    }
                    _ => None,
                },
            };
            // The command that released it has recorded the exit.
            stop::settle(context, &container, ended).await?;
            let written = match container.record()?.map(|record| record.status) {
                Some(Status::Exited(exit)) => Some(exit.code),
                _ => None,
            };
            let code = ended.map(|ended| ended.status).or(written).unwrap_or(UNKNOWN_STATUS);
            Ok(format::print(&format!("{code}\n"))?)
        })
        .await
    }
}
