//! Hotplug: volumes and devices that are added to an existing container, and removed again. A volume is a virtio-fs
//! device of its own; a device is an entry of an OCI spec, as when a container is created.
//!
//! This module decides; a helper, which enters the container's mount namespace, mounts volumes and makes nodes
//! ([`crate::oci::Request::Plug`]). The rules allow a device before its node is made, and deny it before its node is
//! removed. Volumes are not kept in a table: a mounted volume is recognised by its device.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kiai_protocol::agent::{PlugRequest, PlugResponse, PluggedVolume, UnplugRequest};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::RwLockReadGuard;

use super::assign::wait_for_all;
use super::inventory::EntryGroup;
use super::inventory::Inventory;
use super::inventory::Unplugged;
use super::state::{Container, Phase};
use crate::device::{self, LocateError};
use crate::fault::{Fault, Result};
use crate::oci::{Changes, DeviceNode, Request, Volume};
use crate::sandbox::Sandbox;
use crate::storage;

/// How long a device may take to appear. The host has attached it before it calls.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);

/// Plugs volumes and devices into a container, all or none.
pub async fn plug(sandbox: &Sandbox, container: &Container, request: &PlugRequest) -> Result<PlugResponse> {
    let volumes = request.volumes.iter().map(volume).collect::<Result<Vec<_>>>()?;
    for volume in &volumes {
        device::wait_for_virtio_fs(&sandbox.uevents, &volume.tag, DEVICE_TIMEOUT).await?;
    }
    let devices = wait_for_all(&sandbox.uevents, &request.devices, DEVICE_TIMEOUT).await?;
    let group = EntryGroup::new(&request.linux, devices)?;
    let entries = group.entries();
    let (_phase, init) = hold(container).await?;
    let change = container.devices.change().await;
    let before = change.inventory();
    let (after, nodes) = before.plug(group)?;
    // The rules come first, so that a node can be used as soon as it is made.
    change.enforce(after.into(), &container.cgroup)?;
    if let Err(error) = sandbox.helper.change(Request::Plug(Changes { volumes, nodes }), &init).await {
        change.enforce(before, &container.cgroup)?;
        return Err(error.into());
    }
    response(&change.inventory(), &entries)
}

/// Unplugs volumes and devices from a container, all or none. A volume that is already unmounted is no error.
pub async fn unplug(
    sandbox: &Sandbox,
    container: &Container,
    request: &UnplugRequest,
) -> Result<PlugResponse> {
    let mut volumes = Vec::new();
    for volume in request.volumes.iter().map(volume) {
        let volume = volume?;
        match device::wait_for_virtio_fs(&sandbox.uevents, &volume.tag, Duration::ZERO).await {
            Ok(()) => volumes.push(volume),
            // The guest has removed the device from its bus; a mount of it that is left is dead and harmless.
            Err(LocateError::Absent(..)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (_phase, init) = hold(container).await?;
    let change = container.devices.change().await;
    let before = change.inventory();
    let (after, unplugged) = before.unplug(&request.devices)?;
    // From here on no process can open the devices.
    change.enforce(after.into(), &container.cgroup)?;
    if let Err(error) = remove(sandbox, volumes, unplugged, &init).await {
        change.enforce(before, &container.cgroup)?;
        return Err(error);
    }
    let entries: Vec<_> = request.devices.iter().map(|device| PathBuf::from(&device.entry)).collect();
    response(&change.inventory(), &entries)
}

/// The response: the container's devices at these entries, and the rules in force.
fn response(inventory: &Inventory, entries: &[PathBuf]) -> Result<PlugResponse> {
    let (mut devices, device_rules) = inventory.report()?;
    devices.retain(|device| entries.iter().any(|entry| entry == Path::new(&device.entry)));
    Ok(PlugResponse { devices, device_rules, ..Default::default() })
}

async fn remove(sandbox: &Sandbox, volumes: Vec<Volume>, unplugged: Unplugged, init: &OwnedFd) -> Result<()> {
    let Unplugged { nodes, assigned } = unplugged;
    let used = move || {
        let used = device::used(&assigned.iter().map(DeviceNode::identity).collect::<Vec<_>>())?;
        Ok::<_, std::io::Error>(assigned.into_iter().find(|node| used.contains(&node.identity())))
    };
    let used = tokio::task::spawn_blocking(used).await.context("look for users of devices")?;
    if let Some(node) = used.context("look for users of devices")? {
        return Err(Fault::FailedPrecondition(format!(
            "device {:?} is in use; close it in the container first",
            node.path
        )));
    }
    Ok(sandbox.helper.change(Request::Unplug(Changes { volumes, nodes }), init).await?)
}

/// The pidfd of the container's init; the container is not removed while the guard is held.
async fn hold(container: &Container) -> Result<(RwLockReadGuard<'_, Phase>, OwnedFd)> {
    let phase = container.phase.read().await;
    if matches!(*phase, Phase::Over) || container.init.has_exited() {
        return Err(container.wrong_phase("changed", &phase));
    }
    // The pid cannot be another process's: only the reaper frees it, on the thread this runs on.
    let pid = Pid::from_raw(container.init.pid).context("an init has a positive pid")?;
    let init = pidfd_open(pid, PidfdFlags::empty()).context("open the init")?;
    Ok((phase, init))
}

/// Whether a path can be the target of a volume or node: it is absolute, has no `..` and is not the root.
pub(super) fn is_target(path: &Path) -> bool {
    let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    path.is_absolute() && plain && path.parent().is_some()
}

fn volume(mount: &PluggedVolume) -> Result<Volume> {
    let wrong = |reason: &str| Fault::InvalidArgument(format!("volume at {:?}: {reason}", mount.target));
    if mount.tag.is_empty() || mount.tag.len() > 36 {
        return Err(wrong("a virtio-fs tag has 1 to 36 bytes"));
    }
    let mut entry = Path::new(&mount.entry).components();
    if !matches!((entry.next(), entry.next()), (Some(Component::Normal(_)), None)) {
        return Err(wrong("the entry is not a file name"));
    }
    let target = Path::new(&mount.target);
    if !is_target(target) || mount.target.contains('\0') {
        return Err(wrong("the target is not an absolute path without `..`"));
    }
    let attributes = storage::attributes(&mount.options, mount.read_only)
        .map_err(|option| wrong(&format!("mount option {option:?} is not known")))?;
    let (tag, entry) = (mount.tag.clone(), mount.entry.clone());
    Ok(Volume { tag, entry, target: target.components().collect(), attributes: attributes.bits() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(tag: &str, entry: &str, target: &str) -> PluggedVolume {
        let (tag, entry, target) = (tag.to_owned(), entry.to_owned(), target.to_owned());
        PluggedVolume { tag, entry, target, ..Default::default() }
    }

    #[test]
    fn what_cannot_be_a_volume_is_refused_by_name() {
        let long = "x".repeat(37);
        assert_eq!(volume(&mount("t", "v", "/a//b/")).unwrap().target, Path::new("/a/b"));
        for (tag, entry, target) in [
            ("", "v", "/a"),
            (&long, "v", "/a"),
            ("t", "", "/a"),
            ("t", "..", "/a"),
            ("t", "a/b", "/a"),
            ("t", "/", "/a"),
            ("t", "v", "a"),
            ("t", "v", "/"),
            ("t", "v", "/a/../b"),
        ] {
            let error = volume(&mount(tag, entry, target)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("volume at {target:?}: ")), "{error}");
        }
        let optioned = |option: &str| PluggedVolume {
            options: vec!["rbind".into(), "nosuid".into(), option.into()],
            ..mount("t", "v", "/a")
        };
        assert_eq!(volume(&optioned("nodev")).unwrap().attributes, 6, "MOUNT_ATTR_NOSUID and _NODEV");
        assert!(volume(&optioned("uid=7")).unwrap_err().to_string().contains("uid"));
    }
}
