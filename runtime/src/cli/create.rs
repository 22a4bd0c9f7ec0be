//! `kiai create`: makes a container without starting it.

use anyhow::Context as _;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::container_options::ContainerOptions;
use crate::cli::container_options::LogDriver;
use crate::cli::creation;
use crate::cli::creation::Creation;
use crate::cli::format;
use crate::cli::options::ProcessOptions;
use crate::cli::options::SourceOptions;
use crate::store::record::Status;

/// Make a container, to be started by kiai start
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(super) struct Create {
    #[command(flatten)]
    process: ProcessOptions,
    #[command(flatten)]
    container: ContainerOptions,
    #[command(flatten)]
    source: SourceOptions,
}

impl Create {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        creation::check(&self.container)?;
        let (source, command) = self.source.find(context).await?;
        let creation = Creation {
            context,
            process: &self.process,
            container: &self.container,
            source: &source,
            command: &command,
            logged: self.container.log_driver == LogDriver::File,
        };
        let mut making = creation.make()?;
        making.record.status = Status::Created;
        if let Err(error) = making.container.write_record(&making.record) {
            making.undo_unstarted();
            return Err(CommandError::own(error));
        }
        format::print(&format!("{}\n", making.record.id)).context("cannot print the id")?;
        Ok(0)
    }
}
