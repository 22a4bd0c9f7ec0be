//! `kiai stop`: sends the stop signal to a container, and after a time-out SIGKILL.

use std::time::Duration;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::events;
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
    /// Seconds between the stop signal and SIGKILL; -1 waits for ever [default: the container's, or 10]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// The signal to stop them with [default: the container's]
    #[arg(short, long, value_name = "SIGNAL", value_parser = signals::parse)]
    signal: Option<u32>,
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Stop {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        each(&self.containers, async |name| {
            let (container, record) = context.store.find(name)?;
            let state = State::of(&record).await;
            match state {
                State::Creating => {
                    anyhow::bail!("container {} is being made by another command", record.name)
                }
                State::Starting => {
                    anyhow::bail!("container {} is being started by another command", record.name)
                }
                State::Created => return Ok(format::print(&format!("{name}\n"))?),
                _ => {}
            }
            mark_stopped(&container)?;
            let ended = ask(&record, &state, self.signal, patience(self.time, &record)).await?;
            events::tell(context, &record, "stop", &[]);
            settle(context, &container, ended).await?;
            Ok(format::print(&format!("{name}\n"))?)
        })
        .await
    }
}

/// Records that a command stops the container, so that its restart policy does not start it again.
///
/// # Errors
/// The record cannot be written.
pub(super) fn mark_stopped(container: &ContainerDirectory) -> anyhow::Result<()> {
    let Some(_lock) = container.lock()? else { return Ok(()) };
    if let Some(mut record) = container.record()?
        && !record.stopped
    {
        record.stopped = true;
        container.write_record(&record)?;
    }
    Ok(())
}

/// The stop time-out of Docker, if neither the command nor the container names one.
const USUAL_PATIENCE: u32 = 10;

/// The time between the stop signal and SIGKILL. A negative time has no end.
pub(super) fn patience(time: Option<i64>, record: &Record) -> Duration {
    let seconds = time.unwrap_or_else(|| record.stop_timeout.unwrap_or(USUAL_PATIENCE).into());
    u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs)
}

/// Ends a running container's process with `signal`, or its stop signal, and after a time-out with SIGKILL. Processes
/// that are paused are resumed, as they could not answer the signal.
///
/// # Errors
/// The shim refuses.
pub(super) async fn ask(
    record: &Record,
    state: &State,
    signal: Option<u32>,
    patience: Duration,
) -> Result<Option<TaskExit>, ShimError> {
    if let State::Paused { .. } = state
        && let Status::Started { socket, .. } = &record.status
    {
        Task::connect(socket, &record.id).await?.resume().await?;
    }
    let own = || signals::parse(&record.stop_signal).unwrap_or(signals::TERM);
    end(record, signal.unwrap_or_else(own), patience).await
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
