//! Volumes and devices that come to an existing container, and go before it does. A volume is a virtio-fs device
//! of its own; a device is an entry of an OCI spec, as when a container is made.
//!
//! Decided here, done by a helper, which enters the container's mount namespace ([`crate::oci::Request::Plug`]).
//! The rules allow a device before its node is made, and deny it before its node is removed. No volume is remembered: what is
//! taken out is recognised by its device.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kiai_protocol::agent::{PlugRequest, PlugResponse, PluggedVolume, UnplugRequest};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::RwLockReadGuard;

use super::assign::wait_for_all;
use super::inventory::Attachment;
use super::inventory::Detached;
use super::inventory::Inventory;
use super::state::{Container, Phase};
use crate::device::{self, LocateError};
use crate::fault::{Fault, Result};
use crate::oci::{Changes, DeviceNode, Request, Volume};
use crate::sandbox::Sandbox;
use crate::storage;

/// How long a device may take to appear. The host attaches before it asks.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);

/// Puts volumes and devices into it, all or none.
pub async fn plug(sandbox: &Sandbox, container: &Container, request: &PlugRequest) -> Result<PlugResponse> {
    let volumes = request.volumes.iter().map(volume).collect::<Result<Vec<_>>>()?;
    for volume in &volumes {
        device::wait_for_virtio_fs(&sandbox.uevents, &volume.tag, DEVICE_TIMEOUT).await?;
    }
    let devices = wait_for_all(&sandbox.uevents, &request.devices, DEVICE_TIMEOUT).await?;
    let attachment = Attachment::new(&request.linux, devices)?;
    let entries = attachment.entries();
    let (_phase, init) = hold(container).await?;
    let change = container.devices.change().await;
    let before = change.inventory();
    let (after, nodes) = before.attach(attachment)?;
    // The rules come first: a node that is made can be used.
    change.enforce(after.into(), &container.cgroup)?;
    if let Err(error) = sandbox.helper.change(Request::Plug(Changes { volumes, nodes }), &init).await {
        change.enforce(before, &container.cgroup)?;
        return Err(error.into());
    }
    response(&change.inventory(), &entries)
}

/// Takes volumes and devices out of it, all or none. One that has gone already is no error.
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
            // Thrown off its bus by who has the right to. What is still mounted of it is dead and in nobody's way.
            Err(LocateError::Absent(..)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (_phase, init) = hold(container).await?;
    let change = container.devices.change().await;
    let before = change.inventory();
    let (after, detached) = before.detach(&request.devices)?;
    // From here on nobody comes to use them.
    change.enforce(after.into(), &container.cgroup)?;
    if let Err(error) = take_out(sandbox, volumes, detached, &init).await {
        change.enforce(before, &container.cgroup)?;
        return Err(error);
    }
    let entries: Vec<_> = request.devices.iter().map(|device| PathBuf::from(&device.entry)).collect();
    response(&change.inventory(), &entries)
}

/// What the container has at these entries now.
fn response(inventory: &Inventory, entries: &[PathBuf]) -> Result<PlugResponse> {
    let (mut devices, device_rules) = inventory.report()?;
    devices.retain(|device| entries.iter().any(|entry| entry == Path::new(&device.entry)));
    Ok(PlugResponse { devices, device_rules, ..Default::default() })
}

async fn take_out(sandbox: &Sandbox, volumes: Vec<Volume>, detached: Detached, init: &OwnedFd) -> Result<()> {
    let Detached { nodes, assigned } = detached;
    let used = move || {
        let used = device::used(&assigned.iter().map(DeviceNode::identity).collect::<Vec<_>>())?;
        Ok::<_, std::io::Error>(assigned.into_iter().find(|node| used.contains(&node.identity())))
    };
    let used = tokio::task::spawn_blocking(used).await.context("look for users")?;
    if let Some(node) = used.context("look for users of devices")? {
        return Err(Fault::FailedPrecondition(format!("device {:?}: it is in use", node.path)));
    }
    Ok(sandbox.helper.change(Request::Unplug(Changes { volumes, nodes }), init).await?)
}

/// Its init, which is there and, as long as the guard is held, not removed.
async fn hold(container: &Container) -> Result<(RwLockReadGuard<'_, Phase>, OwnedFd)> {
    let phase = container.phase.read().await;
    if matches!(*phase, Phase::Over) || container.init.has_exited() {
        return Err(container.wrong_phase("changed", &phase));
    }
    // Not another process's: it is freed only by the reaper, on the thread this runs on.
    let pid = Pid::from_raw(container.init.pid).context("an init has a positive pid")?;
    let init = pidfd_open(pid, PidfdFlags::empty()).context("open the init")?;
    Ok((phase, init))
}

/// Whether something can be put there: an absolute path without `..`, and not the root.
pub(super) fn is_place(path: &Path) -> bool {
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
        return Err(wrong("the entry is not the name of one"));
    }
    let target = Path::new(&mount.target);
    if !is_place(target) || mount.target.contains('\0') {
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
