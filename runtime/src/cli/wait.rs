//! `kiai wait`: waits for containers to end and prints how.

use crate::cli::Context;
use crate::cli::each::each;
use crate::cli::failure::Failure;
use crate::cli::format;
use crate::cli::release::UNKNOWN_STATUS;
use crate::cli::state::State;
use crate::cli::stop;
use crate::cli::task::Ended;
use crate::cli::task::Task;
use crate::store::record::Status;

/// Wait for containers to end; print the exit status of each
#[derive(Debug, clap::Args)]
pub(super) struct Wait {
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, Failure> {
        each(&self.containers, async |name| {
            let (container, record) = context.store.find(name)?;
            let ended = match State::of(&record).await {
                State::Exited(exit) => return Ok(format::print(&format!("{}\n", exit.code))?),
                State::Ended { code, at } => Some(Ended { status: code, at }),
                State::Creating => anyhow::bail!("container {} has not started", record.name),
                State::Lost => None,
                State::Running { .. } | State::Paused => match &record.status {
                    Status::Started { socket, .. } => {
                        let task = Task::connect(socket, &record.id).await?;
                        match task.wait("").await {
                            // It ended a moment ago, and somebody gives back what it had.
                            Err(error) if error.is_lost() || error.is_not_found() => None,
                            ended => Some(ended?),
                        }
                    }
                    _ => None,
                },
            };
            // Whoever was there first has written down what we did not see.
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
