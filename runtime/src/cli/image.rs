//! Images for `run`: what a reference stands for, pulled if need be.

use anyhow::bail;

use crate::cli::Context;
use crate::cli::options::PullOption;
use crate::cli::prepare::Source;

/// Finds an image, or gets it.
pub(super) async fn source(_context: &Context, image: &str, _pull: PullOption) -> anyhow::Result<Source> {
    bail!("image {image}: use --rootfs DIR")
}
