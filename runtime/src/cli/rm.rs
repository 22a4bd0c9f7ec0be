//! `kiai rm`: removes containers and whatever is left of them.

use std::time::Duration;

use anyhow::bail;

use crate::cli::Context;
use crate::cli::each::each;
use crate::cli::failure::Failure;
use crate::cli::failure::one_line;
use crate::cli::format;
use crate::cli::release;
use crate::cli::signals;
use crate::cli::state::State;
use crate::cli::stop;
use crate::store::StoreError;

/// Remove containers
#[derive(Debug, clap::Args)]
pub(super) struct Rm {
    /// Also those that run, which are killed; names no container has are no error
    #[arg(short, long)]
    force: bool,
    /// Name or id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, Failure> {
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
            None if state == State::Creating => {
                bail!("container {} is being made by another command", record.name)
            }
            // Somebody ends it right now, and will be done soon.
            None => container.lock()?,
        };
        let Some(lock) = lock else { return Ok(()) };
        let Some(mut record) = container.record()? else { return Ok(()) };
        let ended = stop::end(&record, signals::KILL, Duration::ZERO).await?;
        // Removed by what follows in any case: `release` need not write the end down for it to be known.
        record.auto_remove = false;
        release::release(context, &container, &mut record, &lock, ended).await?;
        Ok(context.store.remove(&container, &record.name)?)
    }
}
