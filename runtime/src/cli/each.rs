//! Verbs for several containers: a failure with one does not stop the others.

use crate::cli::command_error::CommandError;
use crate::cli::command_error::one_line;

/// Runs an operation for each name, prints each error, and returns status 1 if there was one.
pub(super) async fn each(
    names: &[String],
    action: impl AsyncFn(&str) -> anyhow::Result<()>,
) -> Result<u8, CommandError> {
    let mut status = 0;
    for name in names {
        if let Err(error) = action(name).await {
            eprintln!("kiai: {}", one_line(&error));
            status = 1;
        }
    }
    Ok(status)
}
