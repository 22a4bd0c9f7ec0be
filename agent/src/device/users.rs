//! Which devices are in use, so that they cannot be unplugged.
//!
//! Removing a device of a guest's driver gives its users errors, and loses what a disk's file system had not written;
//! removing a device of vfio-pci blocks until its last user has closed it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::Errno;

use super::DeviceKind;
use super::function::node;
use super::rule::Identity;

/// Those of `devices` that are mounted, held exclusively in another way, or open in a process. A device that is no
/// longer in the guest, because it was removed from its bus for instance, counts as unused although a process may
/// still have it open. Blocks.
pub fn used(devices: &[Identity]) -> io::Result<Vec<Identity>> {
    let devices: Vec<_> = devices.iter().copied().filter(|device| guest_node(device).is_some()).collect();
    let mut used: Vec<_> = devices.iter().copied().filter(is_held).collect();
    if !devices.is_empty() {
        used.extend(opened(Path::new("/proc"))?.into_iter().filter(|opened| devices.contains(opened)));
    }
    Ok(used)
}

/// Whether the kernel refuses to open the device once more.
fn is_held(device: &Identity) -> bool {
    let Some(path) = guest_node(device) else { return false };
    let flags = match device.kind {
        DeviceKind::Block => OFlags::RDONLY | OFlags::EXCL,
        // A VFIO group can be opened once; a process that has kept only a function of it counts.
        DeviceKind::Character if path.starts_with("/dev/vfio") => OFlags::RDWR,
        // Opening a device of another driver may have an effect.
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

/// The devices that processes have open.
fn opened(proc: &Path) -> io::Result<Vec<Identity>> {
    let mut opened = Vec::new();
    for process in fs::read_dir(proc)?.flatten() {
        // The process may end while this reads.
        for file in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            opened.extend(open_device(&file.path()));
        }
    }
    Ok(opened)
}

/// The device that a link in /proc/PID/fd leads to, if it leads to a device. Does not ask a file system's server.
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
