//! Images for `run` and the verbs about images: finds an image by its reference, and pulls it if needed.

use anyhow::Context as _;
use anyhow::bail;

use crate::cli::Context;
use crate::cli::options::PullOption;
use crate::cli::prepare::Source;
use crate::image::Image;
use crate::image::ImageSource;
use crate::image::ImageStore;
use crate::image::Progress;
use crate::image::PullOptions;
use crate::image::Quiet;
use crate::image::Terminal;

/// The store of images.
pub(super) fn store(context: &Context) -> anyhow::Result<ImageStore> {
    Ok(ImageStore::open(&context.store.paths().root)?)
}

/// Finds an image in the store, or pulls it.
pub(super) async fn source(
    context: &Context,
    image: &str,
    pull: PullOption,
    quiet: bool,
) -> anyhow::Result<Source> {
    let store = store(context)?;
    let found = match pull {
        PullOption::Always => None,
        PullOption::Missing | PullOption::Never => store.get(image)?,
    };
    let image = match found {
        Some(found) => found,
        None if matches!(pull, PullOption::Never) => {
            bail!("image {image} is not in the store, and --pull never forbids to pull it")
        }
        None => {
            let source = ImageSource::parse(image)?;
            let got = get(&store, &source, None, PullOptions::default(), quiet).await;
            got.with_context(|| format!("image {image}"))?
        }
    };
    let layers = store.layers(&image)?;
    let config = image.config.config().clone().unwrap_or_default();
    Ok(Source { name: image.name, digest: Some(image.digest), layers, config })
}

/// Pulls or imports.
pub(super) async fn get(
    store: &ImageStore,
    source: &ImageSource,
    name: Option<&str>,
    options: PullOptions,
    quiet: bool,
) -> anyhow::Result<Image> {
    let terminal = (!quiet).then(Terminal::new);
    let progress: &dyn Progress = terminal.as_ref().map_or(&Quiet, |terminal| terminal);
    Ok(match source {
        ImageSource::Registry(reference) => store.pull(reference, &options, progress).await?,
        ImageSource::Layout { .. } | ImageSource::Archive(_) => store.import(source, name, progress)?,
    })
}
