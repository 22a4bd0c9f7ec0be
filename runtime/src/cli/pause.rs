//! `kiai pause` and `kiai unpause`: freezes the processes of containers, and lets them go on.

use anyhow::bail;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::events;
use crate::cli::exec::serving_task;
use crate::cli::format;
use crate::cli::state::State;

/// Freeze all processes of containers
#[derive(Debug, clap::Args)]
pub(super) struct Pause {
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Let the processes of paused containers go on
#[derive(Debug, clap::Args)]
pub(super) struct Unpause {
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Pause {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        each(&self.containers, async |name| {
            let (_, record) = context.store.find(name)?;
            let (task, state) = serving_task(&record).await?;
            if let State::Paused { .. } = state {
                bail!("container {} is paused already", record.name);
            }
            task.pause().await?;
            events::tell(context, &record, "pause", &[]);
            Ok(format::print(&format!("{name}\n"))?)
        })
        .await
    }
}

impl Unpause {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        each(&self.containers, async |name| {
            let (_, record) = context.store.find(name)?;
            let (task, state) = serving_task(&record).await?;
            if !matches!(state, State::Paused { .. }) {
                bail!("container {} is not paused: it is {}", record.name, state.word());
            }
            task.resume().await?;
            events::tell(context, &record, "unpause", &[]);
            Ok(format::print(&format!("{name}\n"))?)
        })
        .await
    }
}
