//! The mounts of a container: docker's own, the files in `/etc`, tmpfs and volumes. Pure.

use std::collections::HashSet;
use std::path::Path;
use std::path::PathBuf;

use oci_spec::runtime::Mount;

use crate::spec::SpecError;
use crate::spec::volume::BindMount;
use crate::spec::volume::TmpfsMount;

/// Files that the CLI writes beside the bundle; each is mounted on the image's file of that name in `/etc`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcFiles {
    /// `/etc/hostname`.
    pub hostname: Option<PathBuf>,
    /// `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
}

/// File systems every container has: destination, type, source, options.
const ALWAYS: &[(&str, &str, &str, &[&str])] = &[
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
];

fn mount(destination: &Path, typ: &str, source: &Path, options: Vec<String>) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.to_owned());
    mount.set_typ(Some(typ.to_owned()));
    mount.set_source(Some(source.to_owned()));
    mount.set_options(Some(options));
    mount
}

fn bind(source: &Path, destination: &Path, read_only: bool) -> Mount {
    let mode = if read_only { "ro" } else { "rw" };
    mount(destination, "bind", source, vec!["rbind".into(), "rprivate".into(), mode.into()])
}

/// Makes the list of mounts. A volume or tmpfs replaces a default mount with the same destination, and a deeper
/// destination comes after the one above it.
///
/// # Errors
/// Two volumes or tmpfs have one destination.
pub(crate) fn plan_mounts(
    tmpfs: &[TmpfsMount],
    volumes: &[BindMount],
    etc: &EtcFiles,
    shm_size: Option<u64>,
) -> Result<Vec<Mount>, SpecError> {
    let mut asked = HashSet::new();
    let places = volumes.iter().map(|v| &v.destination).chain(tmpfs.iter().map(|t| &t.destination));
    for place in places {
        if !asked.insert(place.clone()) {
            return Err(SpecError::DuplicateMount(place.clone()));
        }
    }
    let always = ALWAYS.iter().map(|(destination, typ, source, options)| {
        let option = |option: &&str| match shm_size {
            Some(bytes) if *destination == "/dev/shm" && option.starts_with("size=") => {
                format!("size={bytes}")
            }
            _ => (*option).to_owned(),
        };
        mount(Path::new(destination), typ, Path::new(source), options.iter().map(option).collect())
    });
    let files = [
        ("/etc/resolv.conf", &etc.resolv_conf),
        ("/etc/hostname", &etc.hostname),
        ("/etc/hosts", &etc.hosts),
    ];
    let files = files.iter().filter_map(|(destination, source)| {
        source.as_ref().map(|source| bind(source, Path::new(destination), false))
    });
    let mut mounts: Vec<Mount> =
        always.chain(files).filter(|mount| !asked.contains(mount.destination())).collect();

    let mut own: Vec<Mount> = volumes
        .iter()
        .map(|volume| bind(&volume.source, &volume.destination, volume.read_only))
        .chain(
            tmpfs
                .iter()
                .map(|tmpfs| mount(&tmpfs.destination, "tmpfs", Path::new("tmpfs"), tmpfs.options.clone())),
        )
        .collect();
    own.sort_by_key(|mount| mount.destination().components().count());
    mounts.extend(own);
    Ok(mounts)
}

/// Lets a privileged container change the kernel's own file systems.
pub(crate) fn open_kernel(mounts: &mut [Mount]) {
    for mount in mounts {
        if matches!(mount.typ().as_deref(), Some("sysfs" | "cgroup")) {
            let options =
                mount.options().iter().flatten().filter(|option| *option != "ro").cloned().collect();
            mount.set_options(Some(options));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(destination: &str) -> BindMount {
        BindMount { source: "/host".into(), destination: destination.into(), read_only: false }
    }

    fn destinations(mounts: &[Mount]) -> Vec<&str> {
        mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect()
    }

    #[test]
    fn deeper_places_come_later() {
        let mounts = plan_mounts(
            &["/a/b".parse().unwrap()],
            &[volume("/a/b/c"), volume("/a")],
            &EtcFiles::default(),
            None,
        )
        .unwrap();
        assert_eq!(destinations(&mounts)[ALWAYS.len()..], ["/a", "/a/b", "/a/b/c"]);
    }

    #[test]
    fn a_volume_replaces_what_would_be_there() {
        let etc = EtcFiles { hosts: Some("/b/hosts".into()), ..EtcFiles::default() };
        let mounts = plan_mounts(&[], &[volume("/etc/hosts"), volume("/dev/shm")], &etc, None).unwrap();
        for place in ["/etc/hosts", "/dev/shm"] {
            let sources: Vec<_> = mounts
                .iter()
                .filter(|mount| mount.destination() == Path::new(place))
                .map(|mount| mount.source().clone().unwrap())
                .collect();
            assert_eq!(sources, [PathBuf::from("/host")], "{place}");
        }
    }

    #[test]
    fn one_place_is_mounted_once() {
        let error = plan_mounts(&["/a".parse().unwrap()], &[volume("/a")], &EtcFiles::default(), None);
        assert_eq!(error, Err(SpecError::DuplicateMount("/a".into())));
    }
}
