//! `kiai rm`: removes containers.

use std::time::Duration;

use anyhow::bail;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::command_error::one_line;
use crate::cli::each::each;
use crate::cli::events;
use crate::cli::format;
use crate::cli::release;
use crate::cli::signals;
use crate::cli::state::State;
use crate::cli::stop;
use crate::cli::volumes;
use crate::store::StoreError;

/// Remove containers
#[derive(Debug, clap::Args)]
pub(super) struct Rm {
    /// Kill and remove running containers, too; a name without a container is no error
    #[arg(short, long)]
    force: bool,
    /// Remove their anonymous volumes, too
    #[arg(short, long)]
    volumes: bool,
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let status = each(&self.containers, async |name| {
            self.remove(context, name).await?;
            Ok(format::print(&format!("{name}\n"))?)
        })
        .await?;
        if let Err(error) = release::tidy(context).await {
            eprintln!("kiai: {}", one_line(&error));
            return Ok(1);
        }
        Ok(status)
    }

    async fn remove(&self, context: &Context, name: &str) -> anyhow::Result<()> {
        let (container, record) = match context.store.find(name) {
            Err(StoreError::NoContainer(_)) if self.force => return Ok(()),
            found => found?,
        };
        let state = State::of(&record).await;
        if state.is_running() && !self.force {
            bail!("container {} is running; stop it first, or use -f", record.name);
        }
        let lock = match container.try_lock()? {
            Some(lock) => Some(lock),
            None if matches!(state, State::Creating | State::Starting) => {
                bail!("container {} is being made or started by another command", record.name)
            }
            // Another command ends it now, and will have the lock for a short time only.
            None => container.lock()?,
        };
        let Some(lock) = lock else { return Ok(()) };
        let Some(mut record) = container.record()? else { return Ok(()) };
        let ended = stop::end(&record, signals::KILL, Duration::ZERO).await?;
        // It is removed below, so `release` need not record its end.
        record.auto_remove = false;
        release::release(context, &container, &mut record, &lock, ended).await?;
        if self.volumes {
            volumes::remove_anonymous(context, &record);
        }
        context.store.remove(&container, &record.name)?;
        events::tell(context, &record, "destroy", &[]);
        Ok(())
    }
}
