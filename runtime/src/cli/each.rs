//! Verbs that do one thing to several containers: what goes wrong with one does not stop the others.

use crate::cli::failure::Failure;
use crate::cli::failure::one_line;

/// Does it to each, complains about each that fails, and returns status 1 if any did.
pub(super) async fn each(
    names: &[String],
    action: impl AsyncFn(&str) -> anyhow::Result<()>,
) -> Result<u8, Failure> {
    let mut status = 0;
    for name in names {
        if let Err(error) = action(name).await {
            eprintln!("kiai: {}", one_line(&error));
            status = 1;
        }
    }
    Ok(status)
}
