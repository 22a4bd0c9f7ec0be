//! Volumes and the containers that use them.

use crate::cli::Context;
use crate::spec::volume::VolumeOption;
use crate::spec::volume::VolumeSource;
use crate::store::Record;
use crate::store::volumes::Volumes;

/// Whether a container mounts a named volume.
fn uses(record: &Record, name: &str) -> bool {
    let volumes = record.volumes.iter().filter_map(|text| text.parse::<VolumeOption>().ok());
    volumes.into_iter().any(|volume| volume.source == VolumeSource::Named(name.to_owned()))
}

/// The names of the containers, of any namespace, that mount a named volume.
///
/// # Errors
/// A record cannot be read.
pub(super) fn users(context: &Context, name: &str) -> anyhow::Result<Vec<String>> {
    let mut users = Vec::new();
    for store in context.store.of_every_namespace()? {
        let all = store.list()?;
        users.extend(all.into_iter().filter(|(_, r)| uses(r, name)).map(|(_, record)| record.name));
    }
    Ok(users)
}

/// Removes the anonymous volumes of a container that is being removed. One that another container uses stays; a failure
/// is printed, as the container is removed all the same.
pub(super) fn remove_anonymous(context: &Context, record: &Record) {
    if let Err(error) = try_remove(context, record) {
        eprintln!("kiai: cannot remove the anonymous volumes of {}: {error:#}", record.name);
    }
}

fn try_remove(context: &Context, record: &Record) -> anyhow::Result<()> {
    if record.anonymous_volumes.is_empty() {
        return Ok(());
    }
    let volumes = Volumes::new(context.store.paths());
    let _lock = volumes.lock()?;
    for name in &record.anonymous_volumes {
        if users(context, name)?.iter().all(|user| *user == record.name) {
            volumes.remove(name)?;
        }
    }
    Ok(())
}
