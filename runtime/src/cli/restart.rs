//! `kiai restart`: stops containers and starts them again.

use std::time::Duration;

use anyhow::bail;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::events;
use crate::cli::format;
use crate::cli::making::Making;
use crate::cli::plug::locked;
use crate::cli::release;
use crate::cli::start;
use crate::cli::state::State;
use crate::cli::stop;

/// Stop containers and start them again
#[derive(Debug, clap::Args)]
pub(super) struct Restart {
    /// Seconds between the stop signal and SIGKILL [default: the container's, or 10]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// The signal to stop them with [default: the container's]
    #[arg(short, long, value_name = "SIGNAL", value_parser = crate::cli::signals::parse)]
    signal: Option<u32>,
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Restart {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        each(&self.containers, async |name| {
            let making = match self.stopped(context, name).await? {
                Some(making) => making,
                None => match start::ready(context, name).await? {
                    Some(making) => making,
                    None => bail!("container {name} was started by another command meanwhile"),
                },
            };
            let record = making.record.clone();
            start::start(making).await.map_err(CommandError::into_error)?;
            events::tell(context, &record, "restart", &[]);
            Ok(format::print(&format!("{name}\n"))?)
        })
        .await
    }

    /// Stops a running container and keeps its lock, so that nobody removes it at this end; none if it does not run.
    async fn stopped<'a>(&self, context: &'a Context, name: &str) -> anyhow::Result<Option<Making<'a>>> {
        let (container, mut record, lock) = locked(context, name)?;
        let state = State::of(&record).await;
        if !state.is_running() {
            return Ok(None);
        }
        let patience: Duration = stop::patience(self.time, &record);
        let ended = stop::ask(&record, &state, self.signal, patience).await?;
        // With --rm this is not the end at which it is removed.
        let auto_remove = std::mem::replace(&mut record.auto_remove, false);
        release::release(context, &container, &mut record, &lock, ended).await?;
        record.auto_remove = auto_remove;
        Ok(Some(Making { context, container, lock, record }))
    }
}
