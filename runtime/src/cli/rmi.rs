//! `kiai rmi`: removes images.

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::each::each;
use crate::cli::format;
use crate::cli::image;

/// Remove images
#[derive(Debug, clap::Args)]
pub(super) struct Rmi {
    /// Name or digest
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Rmi {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let store = image::store(context)?;
        each(&self.images, async |name| {
            // Containers of the image need its files, even if they have ended.
            if let Some(image) = store.get(name)? {
                let digest = Some(&image.digest);
                let all = context.store.list()?;
                if let Some((_, user)) = all.iter().find(|(_, r)| r.image.digest.as_ref() == digest) {
                    anyhow::bail!(
                        "image {} is used by container {}; remove the container first",
                        image.name,
                        user.name
                    );
                }
            }
            let image = store.remove(name)?;
            Ok(format::print(&format!("{}\n", image.name))?)
        })
        .await
    }
}
