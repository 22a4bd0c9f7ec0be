//! `kiai start`: starts containers that were made before, or have ended.

use anyhow::Context as _;
use anyhow::anyhow;

use crate::cli::Context;
use crate::cli::attach;
use crate::cli::attach::AttachOptions;
use crate::cli::attach::Attachment;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::exec::running_task;
use crate::cli::format;
use crate::cli::making;
use crate::cli::making::Making;
use crate::cli::plug::locked;
use crate::cli::release;
use crate::cli::signals::Forwarded;
use crate::cli::state::State;
use crate::cli::task::Task;

/// Start containers that are not running
#[derive(Debug, clap::Args)]
pub(super) struct Start {
    /// Attach to the output and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Attach to the input, too
    #[arg(short, long)]
    interactive: bool,
    #[command(flatten)]
    options: AttachOptions,
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Start {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        if self.attach || self.interactive {
            return match self.containers.as_slice() {
                [name] => self.attached(context, name).await,
                _ => Err(CommandError::own(anyhow!(
                    "kiai can attach to one container only; leave out -a and -i"
                ))),
            };
        }
        each(&self.containers, async |name| {
            let making = ready(context, name).await?;
            if let Some(making) = making {
                start(making).await.map_err(CommandError::into_error)?;
            }
            Ok(format::print(&format!("{name}\n"))?)
        })
        .await
    }
}

impl Start {
    /// Starts one container and shows its output from the beginning; one that runs is attached to.
    async fn attached(&self, context: &Context, name: &str) -> Result<u8, CommandError> {
        let signals = Forwarded::take_over().context("cannot take over signals")?;
        let making = ready(context, name).await?;
        let (container, record) = context.store.find(name)?;
        // Before the start, so that nothing of the output is missed.
        let log = attach::log_at_end(&container, &record)?;
        let task = match making {
            Some(making) => start(making).await?,
            None => running_task(&record).await?,
        };
        let record = container.record()?.unwrap_or(record);
        let interactive = record.startup.as_ref().is_some_and(|startup| startup.interactive);
        let attachment = Attachment {
            container: &container,
            record: &record,
            log,
            stdin: self.interactive && interactive,
            close_stdin: !record.terminal,
            options: &self.options,
        };
        attachment.attend(context, &task, signals).await
    }
}

/// Locks a container that is to be started; none if it runs already. The remains of its last process are released.
///
/// # Errors
/// No container has the name, or it cannot be started.
pub(super) async fn ready<'a>(context: &'a Context, name: &str) -> anyhow::Result<Option<Making<'a>>> {
    let (container, mut record, lock) = locked(context, name)?;
    match State::of(&record).await {
        State::Running { .. } => return Ok(None),
        State::Paused { .. } => {
            return Err(anyhow!("container {} is paused: kiai unpause {name} lets it go on", record.name));
        }
        // Its lock is free, so the command that made it was killed.
        State::Creating => {
            return Err(anyhow!(
                "container {} was not made completely; remove it (kiai rm {name})",
                record.name
            ));
        }
        State::Starting | State::Lost | State::Ended { .. } => {
            release::tidy_locked(context, &container, &lock).await?;
            record = container.record()?.ok_or_else(|| anyhow!("container {name} was removed at its end"))?;
        }
        State::Created | State::Exited(_) => {}
    }
    Ok(Some(Making { context, container, lock, record }))
}

/// Starts the container in the background.
///
/// # Errors
/// The step that failed; the container is as it was before.
pub(super) async fn start(mut making: Making<'_>) -> Result<Task, CommandError> {
    let previous = making::previous(&making.record.status);
    let started = match making.begin_again().and_then(|()| making.connect()) {
        Ok(()) => making.start_in_background().await,
        Err(error) => Err(CommandError::own(error)),
    };
    match started {
        Ok(task) => Ok(task),
        Err(failure) => Err(making.put_back(previous, failure).await),
    }
}
