//! `kiai pull`: images from registries.

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::format;
use crate::cli::image;
use crate::image::ImageSource;
use crate::image::PullOptions;

/// Pull images from registries
#[derive(Debug, clap::Args)]
pub(super) struct Pull {
    /// Reference, as docker understands it; also oci:DIR, oci:DIR:TAG or docker-archive:FILE
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Platform of the image; there is linux/amd64 only
    #[arg(long, value_name = "OS/ARCH", value_parser = crate::cli::options::parse_platform)]
    platform: Option<()>,
    /// Use plain HTTP (always used for registries on loopback)
    #[arg(long)]
    insecure: bool,
}

impl Pull {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let store = image::store(context)?;
        let options = PullOptions { plain_http: self.insecure };
        each(&self.images, async |name| {
            let source = ImageSource::parse(name)?;
            let image = image::get(&store, &source, None, options, self.quiet).await?;
            Ok(format::print(&format!("{}@{}\n", image.name, image.digest))?)
        })
        .await
    }
}
