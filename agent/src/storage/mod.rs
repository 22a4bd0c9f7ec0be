//! Storages: mounts that the host asks for, each made once and counted.
//!
//! A list is mounted whole or not at all. Several containers may use one storage; it is unmounted with the last of
//! them. [`source`] plans a mount, [`mount`] makes it.

pub(crate) mod mount;
mod source;

pub(crate) use source::attributes;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use kiai_protocol::agent::Storage;
use tokio::sync::Mutex;

use crate::device::LocateError;
use crate::fault::Fault;
use crate::uevent::Uevents;

/// Why a storage was not mounted.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The request is wrong.
    #[error("storage at {0:?}: {1}")]
    Invalid(PathBuf, String),
    /// Another storage has the mount point.
    #[error("storage at {0:?}: another storage is mounted there")]
    Occupied(PathBuf),
    /// Its device was not found.
    #[error("storage at {0:?}: {1}")]
    Device(PathBuf, #[source] LocateError),
    /// The kernel refuses the mount.
    #[error("storage at {0:?}: {1}")]
    Mount(PathBuf, #[source] mount::MountError),
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        match &error {
            StorageError::Invalid(..) => Self::InvalidArgument(error.to_string()),
            StorageError::Occupied(_) => Self::AlreadyExists(error.to_string()),
            StorageError::Device(_, LocateError::Absent(..)) => Self::NotFound(error.to_string()),
            StorageError::Device(..) | StorageError::Mount(..) => Self::Internal(anyhow::anyhow!("{error}")),
        }
    }
}

/// The storages that are mounted.
#[derive(Debug)]
pub struct Storages {
    uevents: Arc<Uevents>,
    mounted: Mutex<HashMap<PathBuf, Mounted>>,
}

#[derive(Debug)]
struct Mounted {
    request: Storage,
    users: usize,
    /// The topmost directory that was made for the mount point, which is removed with it.
    made: Option<PathBuf>,
}

impl Storages {
    /// No storages. Devices are awaited with `uevents`.
    pub fn new(uevents: Arc<Uevents>) -> Self {
        Self { uevents, mounted: Mutex::default() }
    }

    /// Mounts every storage in order, or none. Returns the mount points for [`Self::release`].
    pub async fn mount(&self, requests: &[Storage]) -> Result<Vec<PathBuf>, StorageError> {
        let mut done = Vec::new();
        for request in requests {
            match self.mount_one(request).await {
                Ok(mount_point) => done.push(mount_point),
                Err(error) => {
                    self.release(&done).await;
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    /// Releases storages in reverse order. A mount that is busy is logged and detached.
    pub async fn release(&self, mount_points: &[PathBuf]) {
        let mut table = self.mounted.lock().await;
        for mount_point in mount_points.iter().rev() {
            let Some(entry) = table.get_mut(mount_point) else { continue };
            entry.users -= 1;
            if entry.users > 0 {
                continue;
            }
            let entry = table.remove(mount_point).expect("it was found above, under the same lock");
            unmount(mount_point.clone(), entry.made).await;
        }
    }

    async fn mount_one(&self, request: &Storage) -> Result<PathBuf, StorageError> {
        let mount_point = check_mount_point(&request.mount_point)?;
        // Locked while the device is awaited, because two requests for one mount point must not both mount.
        let mut table = self.mounted.lock().await;
        if let Some(entry) = table.get_mut(&mount_point) {
            if entry.request != *request {
                return Err(StorageError::Occupied(mount_point));
            }
            entry.users += 1;
            return Ok(mount_point);
        }
        let plan = source::plan(request, &mount_point, &self.uevents).await?;
        let target = mount_point.clone();
        // A mount can block on its device or on the host.
        let made = tokio::task::spawn_blocking(move || mount::apply(&plan, &target))
            .await
            .expect("mounting does not panic")
            .map_err(|error| StorageError::Mount(mount_point.clone(), error))?;
        table.insert(mount_point.clone(), Mounted { request: request.clone(), users: 1, made });
        Ok(mount_point)
    }
}

async fn unmount(mount_point: PathBuf, made: Option<PathBuf>) {
    let undo = move || {
        if let Err(error) = mount::undo(&mount_point, made.as_deref()) {
            tracing::warn!("unmount {mount_point:?}: {error}");
        }
    };
    tokio::task::spawn_blocking(undo).await.expect("unmounting does not panic");
}

/// Refuses a mount point that is not an absolute path without `..`, or is the root.
fn check_mount_point(text: &str) -> Result<PathBuf, StorageError> {
    let path = Path::new(text);
    let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    if !path.is_absolute() || !plain || path.parent().is_none() || text.contains('\0') {
        let reason = String::from("the mount point is not an absolute path without `..`");
        return Err(StorageError::Invalid(path.to_owned(), reason));
    }
    // Without doubled or trailing slashes, so that each mount point has one spelling.
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiai_protocol::agent::{Tmpfs, storage::Source};

    #[test]
    fn a_mount_point_has_one_name() {
        assert_eq!(check_mount_point("/run//kiai/x/").unwrap(), Path::new("/run/kiai/x"));
        for wrong in ["", "/", "run/x", "/run/../etc", "/run/\0"] {
            assert!(check_mount_point(wrong).is_err(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_wrong_request_is_refused_and_leaves_nothing() {
        let storages = Storages::new(Arc::default());
        let tmpfs = Storage {
            source: Some(Source::Tmpfs(Tmpfs { mode: 0o10_0000, ..Default::default() })),
            mount_point: "/run/kiai-test".into(),
            ..Default::default()
        };
        assert!(matches!(storages.mount(&[tmpfs]).await, Err(StorageError::Invalid(..))));
        let nothing = Storage { mount_point: "/run/kiai-test".into(), ..Default::default() };
        assert!(matches!(storages.mount(&[nothing]).await, Err(StorageError::Invalid(..))));
        assert!(storages.mounted.lock().await.is_empty());
    }
}
