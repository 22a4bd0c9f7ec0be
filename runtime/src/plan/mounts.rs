//! Plans the mounts of a spec: the source of a bind mount becomes a path in the shared directory.
//!
//! The shared directory has `<container>/rootfs` and `<container>/mounts/<n>`, with n the mount's index in the spec.
//! The agent mounts it at `ports::SHARED_MOUNT` (OCI runtime-spec config.md#mounts).

use std::path::Path;
use std::path::PathBuf;

use kiai_protocol::ports::SHARED_MOUNT;
use oci_spec::runtime::Mount;

use super::HostFacts;
use super::PlanError;
use super::SourceKind;
use super::devices::is_guest_native;

/// Guest path of the pod's /dev/shm, a tmpfs that its containers share. virtio-fs cannot serve it, because shared
/// writable mappings need one page cache.
pub const GUEST_SHM: &str = "/run/kiai/shm";

/// File system types that the guest's kernel mounts without a source on the host.
const GUEST_TYPES: &[&str] = &["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs"];

/// A path of the host that is bound into the shared directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The path on the host.
    pub source: PathBuf,
    /// Below the container's part of the shared directory: `mounts/<n>`.
    pub target: PathBuf,
    /// The kind that the target has to be.
    pub kind: VolumeKind,
    /// The mounts below the source are bound, too.
    pub recursive: bool,
    /// The mount is read-only on the host as well, so that the guest cannot change that.
    pub read_only: bool,
}

/// The kind of a bind mount's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// A directory.
    Directory,
    /// A single file.
    File,
}

/// Guest path of a container's part of the shared directory.
pub fn container_directory(container_id: &str) -> PathBuf {
    Path::new(SHARED_MOUNT).join(container_id)
}

/// The mount's source on the host, if it has one.
pub(super) fn host_source(mount: &Mount) -> Option<&Path> {
    if !is_bind(mount) || is_shm(mount) {
        return None;
    }
    mount.source().as_deref().filter(|source| !belongs_to_guest(source))
}

/// Rewrites the sources of `mounts` for the guest and returns the volumes to bind on the host.
pub(super) fn plan_mounts(
    container_id: &str,
    mounts: &mut [Mount],
    facts: &HostFacts,
) -> Result<Vec<Volume>, PlanError> {
    let mut volumes = Vec::new();
    for (index, mount) in mounts.iter_mut().enumerate() {
        check(mount)?;
        if is_bind(mount) && is_shm(mount) {
            mount.set_source(Some(GUEST_SHM.into()));
            continue;
        }
        let Some(source) = host_source(mount).map(Path::to_path_buf) else { continue };
        let at = mount.destination();
        let Some(kind) = kind_of(&source, at, facts.sources.get(&source).copied())? else { continue };
        let target = Path::new("mounts").join(index.to_string());
        mount.set_source(Some(container_directory(container_id).join(&target)));
        volumes.push(Volume {
            source,
            target,
            kind,
            recursive: has_option(mount, "rbind"),
            read_only: has_option(mount, "ro") || has_option(mount, "rro"),
        });
    }
    Ok(volumes)
}

/// The kind of a volume from `source`; none for a standard device, which the guest has itself.
fn kind_of(
    source: &Path,
    destination: &Path,
    found: Option<SourceKind>,
) -> Result<Option<VolumeKind>, PlanError> {
    let destination = destination.to_path_buf();
    let refuse = |reason: &str| {
        let reason = format!("source {} {reason}", source.display());
        Err(PlanError::Mount { destination: destination.clone(), reason })
    };
    match found {
        None => Err(PlanError::NoSource { destination, source_path: source.into() }),
        Some(SourceKind::Directory) => Ok(Some(VolumeKind::Directory)),
        Some(SourceKind::File) => Ok(Some(VolumeKind::File)),
        // A mount of /dev/null hides a path; the guest's own node does the same.
        Some(SourceKind::CharacterDevice { major, minor }) if is_guest_native(major.into(), minor.into()) => {
            Ok(None)
        }
        Some(SourceKind::CharacterDevice { .. } | SourceKind::BlockDevice) => {
            refuse("is a device; add it to linux.devices (kiai run --device) instead")
        }
        Some(SourceKind::Socket) => refuse("is a socket of the host, which the guest's kernel cannot reach"),
    }
}

/// Plans a volume for an existing container; `found` is the kind of its source. The volume has a shared directory of
/// its own, and `target` is its name in it.
pub fn plan_volume(
    source: &Path,
    destination: &Path,
    read_only: bool,
    found: Option<SourceKind>,
) -> Result<Volume, PlanError> {
    let refuse = |reason: String| Err(PlanError::Mount { destination: destination.into(), reason });
    if !destination.is_absolute() || destination.parent().is_none() {
        return refuse("the destination is not an absolute path below /".into());
    }
    if !source.is_absolute() {
        return refuse("the source is not an absolute path".into());
    }
    let kind = if belongs_to_guest(source) { None } else { kind_of(source, destination, found)? };
    match kind {
        Some(kind) => {
            Ok(Volume { source: source.into(), target: "volume".into(), kind, recursive: true, read_only })
        }
        None => refuse(format!(
            "source {} is a file system or device of the host's kernel, and the guest's kernel has its own",
            source.display()
        )),
    }
}

/// Whether the spec shares /dev/shm with other containers.
pub(super) fn wants_shm(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| is_bind(mount) && is_shm(mount))
}

fn check(mount: &Mount) -> Result<(), PlanError> {
    let refuse = |reason: String| PlanError::Mount { destination: mount.destination().clone(), reason };
    if !mount.destination().is_absolute() {
        return Err(refuse("the destination is not an absolute path".into()));
    }
    if is_bind(mount) {
        if mount.source().as_ref().is_none_or(|source| !source.is_absolute()) {
            return Err(refuse("the source of a bind mount is not an absolute path".into()));
        }
        if has_option(mount, "shared") || has_option(mount, "rshared") {
            return Err(refuse("a mount made in the guest cannot propagate to the host (rshared)".into()));
        }
        return Ok(());
    }
    match mount.typ().as_deref() {
        Some(typ) if GUEST_TYPES.contains(&typ) => Ok(()),
        typ => Err(refuse(format!("file system type {:?} is not supported", typ.unwrap_or_default()))),
    }
}

/// Whether a path belongs to the kernel's own file systems; a container gets those of the guest's kernel.
fn belongs_to_guest(source: &Path) -> bool {
    source.starts_with("/proc") || source.starts_with("/sys") || source == Path::new("/dev")
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has_option(mount, "bind") || has_option(mount, "rbind")
}

fn is_shm(mount: &Mount) -> bool {
    mount.destination() == Path::new("/dev/shm")
}

fn has_option(mount: &Mount, option: &str) -> bool {
    mount.options().iter().flatten().any(|have| have == option)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(typ: &str, source: &str, destination: &str, options: &[&str]) -> Mount {
        let mut mount = Mount::default();
        mount.set_typ(Some(typ.into()));
        mount.set_source(Some(source.into()));
        mount.set_destination(destination.into());
        mount.set_options(Some(options.iter().map(|o| o.to_string()).collect()));
        mount
    }

    fn facts(sources: &[(&str, SourceKind)]) -> HostFacts {
        HostFacts { sources: sources.iter().map(|(p, k)| (p.into(), *k)).collect(), ..HostFacts::default() }
    }

    #[test]
    fn a_volume_moves_into_the_shared_directory() {
        let mut mounts = [
            mount("proc", "proc", "/proc", &[]),
            mount("bind", "/srv/data", "/data", &["rbind", "ro"]),
            mount("none", "/etc/hosts", "/etc/hosts", &["bind"]),
        ];
        let facts = facts(&[("/srv/data", SourceKind::Directory), ("/etc/hosts", SourceKind::File)]);
        let volumes = plan_mounts("c", &mut mounts, &facts).unwrap();
        let volume = |source: &str, target: &str, kind, recursive, read_only| Volume {
            source: source.into(),
            target: target.into(),
            kind,
            recursive,
            read_only,
        };
        assert_eq!(
            volumes,
            [
                volume("/srv/data", "mounts/1", VolumeKind::Directory, true, true),
                volume("/etc/hosts", "mounts/2", VolumeKind::File, false, false),
            ]
        );
        assert_eq!(mounts[1].source().as_deref(), Some(Path::new("/run/kiai/shared/c/mounts/1")));
        assert_eq!(mounts[0].source().as_deref(), Some(Path::new("proc")));
    }

    #[test]
    fn shared_memory_and_kernel_file_systems_are_the_guests_own() {
        let mut mounts = [
            mount("bind", "/run/x/shm", "/dev/shm", &["rbind"]),
            mount("bind", "/sys/fs/cgroup", "/sys/fs/cgroup", &["rbind"]),
            mount("bind", "/dev/null", "/etc/secret", &["bind"]),
        ];
        let null = SourceKind::CharacterDevice { major: 1, minor: 3 };
        assert_eq!(plan_mounts("c", &mut mounts, &facts(&[("/dev/null", null)])).unwrap(), []);
        assert_eq!(mounts[0].source().as_deref(), Some(Path::new(GUEST_SHM)));
        assert_eq!(mounts[2].source().as_deref(), Some(Path::new("/dev/null")));
    }

    #[test]
    fn an_impossible_mount_is_refused_by_name() {
        let sources = [
            ("/run/s", SourceKind::Socket),
            ("/dev/sda", SourceKind::BlockDevice),
            ("/dev/kvm", SourceKind::CharacterDevice { major: 10, minor: 232 }),
            ("/d", SourceKind::Directory),
        ];
        for (typ, source, options) in [
            ("bind", "/gone", vec![]),
            ("bind", "relative", vec![]),
            ("bind", "/run/s", vec![]),
            ("bind", "/dev/sda", vec![]),
            ("bind", "/dev/kvm", vec![]),
            ("bind", "/d", vec!["rshared"]),
            ("ext4", "/dev/sda", vec![]),
        ] {
            let mut mounts = [mount(typ, source, "/at", &options)];
            let error = plan_mounts("c", &mut mounts, &facts(&sources)).unwrap_err().to_string();
            assert!(error.starts_with("mount /at: "), "{error}");
        }
    }

    #[test]
    fn a_volume_for_an_existing_container_is_refused_like_one_of_a_spec() {
        let plan = |source: &str, destination: &str, found| {
            plan_volume(Path::new(source), Path::new(destination), true, found)
        };
        let volume = plan("/srv", "/data", Some(SourceKind::Directory)).unwrap();
        assert!(volume.read_only && volume.recursive && volume.kind == VolumeKind::Directory);
        let null = SourceKind::CharacterDevice { major: 1, minor: 3 };
        for (source, destination, found) in [
            ("/gone", "/at", None),
            ("/dev/sda", "/at", Some(SourceKind::BlockDevice)),
            ("/dev/null", "/at", Some(null)),
            ("/run/s", "/at", Some(SourceKind::Socket)),
            ("/proc/sys", "/at", Some(SourceKind::Directory)),
            ("srv", "/at", Some(SourceKind::Directory)),
            ("/srv", "at", Some(SourceKind::Directory)),
            ("/srv", "/", Some(SourceKind::Directory)),
        ] {
            let error = plan(source, destination, found).unwrap_err().to_string();
            assert!(error.starts_with(&format!("mount {destination}: ")), "{error}");
        }
    }
}
