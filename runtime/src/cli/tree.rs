//! The files of a container, running or not, as [`crate::host::inside`] enters them.

use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::bail;
use oci_spec::runtime::Mount;
use oci_spec::runtime::Spec;

use crate::cli::Context;
use crate::cli::state::State;
use crate::host::inside::Tree;
use crate::host::inside::TreeRoot;
use crate::host::inside::TreeVolume;
use crate::host::rootfs::FsMount;
use crate::spec::volume::VolumeOption;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::StoreError;
use crate::store::file::Lock;
use crate::store::record::Status;
use crate::store::rootfs;

/// A container whose files are looked into. One that does not run is not started meanwhile.
pub(super) struct Files {
    pub(super) tree: Tree,
    name: String,
    mounts: Vec<Mount>,
    plugged: Vec<PathBuf>,
    read_only: bool,
    _lock: Option<Lock>,
}

impl Files {
    /// Finds a container by name or id.
    ///
    /// # Errors
    /// There is none, it is being made or started, or its specification cannot be read.
    pub(super) async fn of(context: &Context, name: &str) -> anyhow::Result<Self> {
        let (container, record) = context.store.find(name)?;
        let path = container.bundle().join("config.json");
        let spec = Spec::load(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mounts = spec.mounts().clone().unwrap_or_default();
        let (root, lock) = root(&container, &record, name).await?;
        let planned = |volume: &VolumeOption| mounts.iter().any(|m| *m.destination() == volume.destination);
        let plugged = record.volumes.iter().filter_map(|text| text.parse::<VolumeOption>().ok());
        Ok(Self {
            tree: Tree { root, volumes: volumes(&mounts) },
            name: record.name,
            plugged: plugged.filter(|volume| !planned(volume)).map(|volume| volume.destination).collect(),
            mounts,
            read_only: spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)),
            _lock: lock,
        })
    }

    /// Refuses a path that only the guest can reach, and with `written` one that is read-only.
    ///
    /// # Errors
    /// The error says what the path is.
    pub(super) fn check(&self, path: &str, written: bool) -> anyhow::Result<()> {
        let (name, path) = (&self.name, &absolute(path));
        if let Some(plugged) = self.plugged.iter().find(|plugged| path.starts_with(plugged)) {
            bail!(
                "{name}:{}: a volume that was plugged in; use its directory on the host",
                plugged.display()
            );
        }
        let above = self.mounts.iter().filter(|mount| path.starts_with(mount.destination()));
        let Some(mount) = above.max_by_key(|mount| mount.destination().components().count()) else {
            if written && self.read_only {
                bail!("the root file system of container {name} is read-only");
            }
            return Ok(());
        };
        let at = mount.destination().display();
        if !is_bind(mount) {
            let kind = mount.typ().as_deref().unwrap_or("mount");
            bail!("{name}:{at} is a {kind} in the guest's memory; use kiai exec and tar");
        }
        if written && is_read_only(mount) {
            bail!("the volume at {name}:{at} is read-only");
        }
        Ok(())
    }
}

async fn root(
    container: &ContainerDirectory,
    record: &Record,
    name: &str,
) -> anyhow::Result<(TreeRoot, Option<Lock>)> {
    let bundle = container.bundle();
    match (State::of(record).await, &record.status) {
        (state, Status::Started { shim, .. }) if state.is_running() => {
            let path = bundle.join("shared").join(&record.id).join("rootfs");
            Ok((TreeRoot::Running { pid: shim.pid, path }, None))
        }
        _ => {
            let lock = container.lock()?.ok_or_else(|| StoreError::NoContainer(name.to_owned()))?;
            // Read again: another command may have had the lock.
            let record = container.record()?.ok_or_else(|| StoreError::NoContainer(name.to_owned()))?;
            if !matches!(record.status, Status::Created | Status::Exited(_)) {
                bail!("container {name} is being started or released by another command");
            }
            let overlay = FsMount {
                typ: "overlay".to_owned(),
                source: "overlay".to_owned(),
                target: String::new(),
                options: rootfs::overlay_options(container, &record.layers)?,
            };
            Ok((TreeRoot::Resting { rootfs: vec![overlay], at: bundle.join("rootfs") }, Some(lock)))
        }
    }
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
}

fn is_read_only(mount: &Mount) -> bool {
    mount.options().iter().flatten().any(|option| option == "ro")
}

fn volumes(mounts: &[Mount]) -> Vec<TreeVolume> {
    let binds = mounts.iter().filter(|mount| is_bind(mount));
    let volume = |mount: &Mount| TreeVolume {
        source: mount.source().clone().unwrap_or_default(),
        destination: mount.destination().clone(),
        read_only: is_read_only(mount),
    };
    binds.map(volume).collect()
}

/// The path below `/`, without `.` and `..`.
fn absolute(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(destination: &str, typ: &str, options: &[&str]) -> Mount {
        let mut mount = Mount::default();
        mount.set_destination(destination.into());
        mount.set_typ(Some(typ.to_owned()));
        mount.set_source(Some("/source".into()));
        mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
        mount
    }

    #[test]
    fn places_of_the_guest_and_read_only_ones_are_refused_by_name() {
        let files = |read_only| Files {
            tree: Tree { root: TreeRoot::Directory("/".into()), volumes: Vec::new() },
            name: "web".to_owned(),
            mounts: vec![
                mount("/proc", "proc", &[]),
                mount("/data", "bind", &["rbind", "ro"]),
                mount("/data/rw", "bind", &["rbind", "rw"]),
                mount("/t", "tmpfs", &[]),
            ],
            plugged: vec!["/plugged".into()],
            read_only,
            _lock: None,
        };
        let table = [
            ("etc/passwd", true, None),
            ("/proc/1/status", false, Some("web:/proc is a proc")),
            ("/x/../t/file", false, Some("web:/t is a tmpfs")),
            ("/tt", true, None),
            ("/data/x", true, Some("web:/data is read-only")),
            ("/data/x", false, None),
            ("/data/rw/x", true, None),
            ("/plugged/x", false, Some("web:/plugged")),
        ];
        for (path, written, refusal) in table {
            match (files(false).check(path, written), refusal) {
                (Ok(()), None) => {}
                (Err(error), Some(part)) if error.to_string().contains(part) => {}
                (other, _) => panic!("{path}: {other:?}"),
            }
        }
        assert!(files(true).check("/x", true).is_err() && files(true).check("/x", false).is_ok());
        assert!(files(true).check("/data/rw/x", true).is_ok());
    }
}
