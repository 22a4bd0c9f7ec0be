//! `kiai stop`: sends the stop signal to a container, and after a time-out SIGKILL.

use std::time::Duration;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::format;
use crate::cli::release;
use crate::cli::signals;
use crate::cli::state::State;
use crate::cli::task::ShimError;
use crate::cli::task::Task;
use crate::cli::task::TaskExit;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::record::Status;

/// Stop containers: with their stop signal, and with SIGKILL after a time-out
#[derive(Debug, clap::Args)]
pub(super) struct Stop {
    /// Seconds between the stop signal and SIGKILL
    #[arg(short, long, default_value_t = 10, value_name = "SECONDS")]
    time: u32,
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Stop {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let patience = Duration::from_secs(self.time.into());
        each(&self.containers, async |name| {
            let (container, record) = context.store.find(name)?;
            if State::of(&record).await == State::Creating {
                anyhow::bail!("container {} is being made by another command", record.name);
            }
            let signal = signals::parse(&record.stop_signal).unwrap_or(signals::TERM);
            let ended = end(&record, signal, patience).await?;
            settle(context, &container, ended).await?;
            Ok(format::print(&format!("{name}\n"))?)
        })
        .await
    }
}

/// Ends a container's process: with its stop signal if a time-out is given, then with SIGKILL. None if it does not run.
///
/// # Errors
/// The shim refuses.
pub(super) async fn end(
    record: &Record,
    signal: u32,
    patience: Duration,
) -> Result<Option<TaskExit>, ShimError> {
    let Status::Started { socket, shim, .. } = &record.status else { return Ok(None) };
    if !shim.is_alive() {
        return Ok(None);
    }
    match end_task(socket, &record.id, signal, patience).await {
        Err(error) if error.is_lost() || error.is_not_found() => Ok(None),
        other => other.map(Some),
    }
}

async fn end_task(
    socket: &std::path::Path,
    id: &str,
    signal: u32,
    patience: Duration,
) -> Result<TaskExit, ShimError> {
    let task = Task::connect(socket, id).await?;
    let wait = task.wait("");
    tokio::pin!(wait);
    if signal != signals::KILL && !patience.is_zero() {
        // A guest that hangs does not answer.
        let asked = async {
            ended_already(task.kill("", signal, false).await)?;
            (&mut wait).await
        };
        if let Ok(ended) = tokio::time::timeout(patience, asked).await {
            return ended;
        }
    }
    ended_already(task.kill("", signals::KILL, true).await)?;
    wait.await
}

/// Ignores the error for a process that has ended already.
fn ended_already(result: Result<(), ShimError>) -> Result<(), ShimError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// Records the end of a container and releases it, unless another command has done so.
///
/// # Errors
/// The container cannot be released.
pub(super) async fn settle(
    context: &Context,
    container: &ContainerDirectory,
    ended: Option<TaskExit>,
) -> anyhow::Result<()> {
    let Some(lock) = container.lock()? else { return Ok(()) };
    let Some(mut record) = container.record()? else { return Ok(()) };
    release::release(context, container, &mut record, &lock, ended).await.map(drop)
}
