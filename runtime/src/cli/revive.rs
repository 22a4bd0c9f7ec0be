//! Starts a container again by its restart policy. The process that has released it does so: the shim starts one at the
//! container's end, and no other process of Kiai lives beside a container.

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::making::Making;
use crate::cli::start;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::record::ExitRecord;
use crate::store::record::Status;
use crate::store::restart;

/// Starts the container again, if its policy says so and no command has stopped it; else does nothing.
///
/// # Errors
/// It cannot be started.
pub(super) async fn by_policy(context: &Context, container: &ContainerDirectory) -> Result<(), CommandError> {
    // It may have been removed at its end.
    let Some(record) = container.record()? else { return Ok(()) };
    let Some(exit) = wanted(&record) else { return Ok(()) };
    // A delay that the policy is about: a container that fails at once must not keep the host busy.
    tokio::time::sleep(restart::delay(record.restarts)).await;
    let Some(lock) = container.lock()? else { return Ok(()) };
    let Some(mut record) = container.record()? else { return Ok(()) };
    // Another command may have stopped or started it meanwhile.
    if wanted(&record) != Some(exit) {
        return Ok(());
    }
    record.restarts = record.restarts.saturating_add(1);
    start::start(Making { context, container: container.clone(), lock, record }).await.map(drop)
}

/// The end after which the policy wants a start.
fn wanted(record: &Record) -> Option<ExitRecord> {
    match &record.status {
        Status::Exited(exit) if !record.stopped && record.restart.wants(exit.code, record.restarts) => {
            Some(exit.clone())
        }
        _ => None,
    }
}
