//! `kiai rename`: gives a container another name.

use anyhow::bail;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::events;
use crate::cli::plug::locked;
use crate::spec::volume::is_name;

/// Give a container another name
#[derive(Debug, clap::Args)]
pub(super) struct Rename {
    /// Name or id
    container: String,
    /// The new name
    name: String,
}

impl Rename {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        Ok(self.rename(context).map(|()| 0)?)
    }

    fn rename(&self, context: &Context) -> anyhow::Result<()> {
        // Docker writes names with a slash in front of them.
        let name = self.name.strip_prefix('/').unwrap_or(&self.name);
        if !is_name(name) {
            bail!("{name:?} is not a name; use letters, digits, '.', '_' and '-', a letter or digit first");
        }
        let (container, mut record, _lock) = locked(context, &self.container)?;
        if record.name == name {
            bail!("container {name} has that name already");
        }
        let old = record.name.clone();
        context.store.rename(&container, &mut record, name)?;
        events::tell(context, &record, "rename", &[("oldName", old)]);
        Ok(())
    }
}
