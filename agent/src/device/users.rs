//! Which devices somebody has a use of, so that they cannot be taken away.
//!
//! A device of a guest's driver that goes leaves its users with errors, and a disk's file system with what it had not
//! written; one that vfio-pci has does not go before its last user has let go of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::Errno;

use super::DeviceKind;
use super::function::node;
use super::rule::Identity;

/// Those of `devices` that are mounted, or held in another way, or that a process has open. What is not there any more,
/// thrown off its bus for instance, nobody has a use of, though a process may still have a file of it. Blocks.
pub fn used(devices: &[Identity]) -> io::Result<Vec<Identity>> {
    let devices: Vec<_> = devices.iter().copied().filter(|device| guest_node(device).is_some()).collect();
    let mut used: Vec<_> = devices.iter().copied().filter(is_held).collect();
    if !devices.is_empty() {
        used.extend(opened(Path::new("/proc"))?.into_iter().filter(|opened| devices.contains(opened)));
    }
    Ok(used)
}

/// Whether the kernel lets nobody else have it.
fn is_held(device: &Identity) -> bool {
    let Some(path) = guest_node(device) else { return false };
    let flags = match device.kind {
        DeviceKind::Block => OFlags::RDONLY | OFlags::EXCL,
        // A group is open once, also to who has kept only a function of it.
        DeviceKind::Character if path.starts_with("/dev/vfio") => OFlags::RDWR,
        // Opening another one may mean something to it.
        DeviceKind::Character => return false,
    };
    matches!(open(&path, flags | OFlags::CLOEXEC, Mode::empty()), Err(Errno::BUSY))
}

fn guest_node(device: &Identity) -> Option<PathBuf> {
    let class = match device.kind {
        DeviceKind::Block => "block",
        DeviceKind::Character => "char",
    };
    let directory = format!("/sys/dev/{class}/{}:{}", device.major, device.minor);
    Some(node(Path::new(&directory), device.kind)?.path)
}

/// Devices that processes have open.
fn opened(proc: &Path) -> io::Result<Vec<Identity>> {
    let mut opened = Vec::new();
    for process in fs::read_dir(proc)?.flatten() {
        // It may end while this reads.
        for file in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            opened.extend(open_device(&file.path()));
        }
    }
    Ok(opened)
}

/// What the file behind a link of /proc is, if it is a device. A server of its file system is not asked.
fn open_device(link: &Path) -> Option<Identity> {
    let found = statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    let kind = match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::BlockDevice => DeviceKind::Block,
        FileType::CharacterDevice => DeviceKind::Character,
        _ => return None,
    };
    let (major, minor) = (found.stx_rdev_major, found.stx_rdev_minor);
    Some(Identity { kind, major, minor })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_used_while_it_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let fds = directory.path().join("7/fd");
        fs::create_dir_all(&fds).unwrap();
        let zero = Identity { kind: DeviceKind::Character, major: 1, minor: 5 };
        assert!(!opened(directory.path()).unwrap().contains(&zero));
        std::os::unix::fs::symlink("/dev/zero", fds.join("0")).unwrap();
        std::os::unix::fs::symlink("/nowhere", fds.join("1")).unwrap();
        std::os::unix::fs::symlink("/", fds.join("2")).unwrap();
        assert_eq!(opened(directory.path()).unwrap(), [zero]);
        let _open = fs::File::open("/dev/zero").unwrap();
        assert!(used(&[zero]).unwrap().contains(&zero), "by this process");
        assert_eq!(used(&[]).unwrap(), []);
    }
}
