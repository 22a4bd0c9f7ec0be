//! `kiai import`: images from files.

use anyhow::anyhow;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::format;
use crate::cli::image;
use crate::image::ImageSource;
use crate::image::PullOptions;

/// Import an image from an OCI layout or from a file written by `docker save`
#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// oci:DIR, oci:DIR:TAG or docker-archive:FILE
    #[arg(value_name = "SOURCE")]
    source: String,
    /// What to call it [default: SOURCE]
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

impl Import {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let source = ImageSource::parse(&self.source).map_err(anyhow::Error::from)?;
        if let ImageSource::Registry(_) = source {
            return Err(CommandError::own(anyhow!(
                "{}: not oci:DIR[:TAG] nor docker-archive:FILE",
                self.source
            )));
        }
        // A name is completed as docker completes it, so that `run` finds it.
        let name = match &self.name {
            Some(name) => Some(ImageSource::parse(name).map_err(anyhow::Error::from)?.name()),
            None => None,
        };
        let store = image::store(context)?;
        let image = image::get(&store, &source, name.as_deref(), PullOptions::default(), false).await?;
        format::print(&format!("{}@{}\n", image.name, image.digest)).map_err(anyhow::Error::from)?;
        Ok(0)
    }
}
