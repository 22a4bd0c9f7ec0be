//! Mounts in the shim's own mount namespace: containerd's mount list, bind mounts, and taking them away.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use nix::mount::MntFlags;
use nix::mount::MsFlags;

/// A mount that could not be made; those before it stay.
#[derive(Debug, thiserror::Error)]
#[error("mount {kind} {source_path} on {target}")]
pub struct MountError {
    kind: String,
    source_path: String,
    target: PathBuf,
    #[source]
    source: io::Error,
}

/// Gives the calling process a mount namespace of its own, from which no mount gets out: what is mounted in it
/// goes when the process does. Call it before the process has threads.
pub fn own_namespace() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

/// Mounts as containerd's mount list says: type, source and fstab-like options.
pub fn mount(kind: &str, source: &str, options: &[String], target: &Path) -> Result<(), MountError> {
    let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
    for option in options {
        match flag(option) {
            Some((flag, true)) => flags |= flag,
            Some((flag, false)) => flags &= !flag,
            None => data.push(option.as_str()),
        }
    }
    let data = data.join(",");
    let bind = flags.contains(MsFlags::MS_BIND) || kind == "bind";
    let error = |e: nix::Error| MountError {
        kind: kind.to_owned(),
        source_path: source.to_owned(),
        target: target.to_owned(),
        source: e.into(),
    };
    if bind {
        let recursive = flags & MsFlags::MS_REC;
        let none = None::<&str>;
        nix::mount::mount(Some(source), target, none, MsFlags::MS_BIND | recursive, none).map_err(error)?;
        // A bind mount takes its other flags only in a second step (mount(2)).
        let rest = flags & !(MsFlags::MS_BIND | MsFlags::MS_REC);
        if !rest.is_empty() {
            let remount = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | rest;
            nix::mount::mount(none, target, none, remount, none).map_err(error)?;
        }
        return Ok(());
    }
    nix::mount::mount(Some(source), target, Some(kind), flags, Some(data.as_str())).map_err(error)
}

/// Binds `source` on `target`, made for it; with what is mounted below, and read-only, if asked.
pub fn bind(source: &Path, target: &Path, recursive: bool, read_only: bool) -> Result<(), MountError> {
    let error = |e: io::Error| MountError {
        kind: "bind".to_owned(),
        source_path: source.display().to_string(),
        target: target.to_owned(),
        source: e,
    };
    if source.is_dir() {
        fs::create_dir_all(target).map_err(error)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(error)?;
        }
        fs::File::create(target).map_err(error)?;
    }
    let mut options = vec![if recursive { "rbind".to_owned() } else { "bind".to_owned() }];
    if read_only {
        options.push("ro".to_owned());
    }
    mount("bind", &source.display().to_string(), &options, target)
}

/// Takes away whatever is mounted on `target`, as often as it is mounted. Busy mounts go when they are no
/// longer used; a target that is no mount point is left alone.
pub fn unmount(target: &Path) {
    while nix::mount::umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
}

/// The flag an option stands for, and whether it sets or clears it.
fn flag(option: &str) -> Option<(MsFlags, bool)> {
    Some(match option {
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "bind" => (MsFlags::MS_BIND, true),
        "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, true),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "defaults" => (MsFlags::empty(), true),
        _ => return None,
    })
}
