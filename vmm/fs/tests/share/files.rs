//! The share as a file system.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kiai_devices::virtio::device::VirtioDevice;
use kiai_fs::Fs;
use kiai_fs::FsError;

use crate::calls::ROOT;
use crate::driver::Driver;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        kiai_skip::skip("only root can create files for others");
    }
    root
}

#[test]
fn configuration_space_holds_the_tag_and_one_request_queue() {
    let directory = tempfile::tempdir().unwrap();
    let device = Fs::new("kiai", directory.path()).unwrap();
    assert_eq!(device.device_id(), 26);
    let mut config = [0xff; 48];
    config[40..].fill(0);
    device.read_config(0, &mut config[..]);
    assert_eq!(&config[..5], b"kiai\0");
    assert_eq!(config[36..40], [1, 0, 0, 0]);
    let mut past_the_end = [0; 4];
    device.read_config(u64::MAX, &mut past_the_end);
    assert_eq!(past_the_end, [0; 4]);
}

#[test]
fn what_cannot_be_shared_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = Fs::new("kiai", &missing).err().unwrap();
    assert!(error.to_string().contains("missing"), "{error}");
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Fs::new("kiai", &file), Err(FsError::Directory { .. })));
    for tag in ["", "a\0b", "a tag with more than thirty-six bytes."] {
        assert!(matches!(Fs::new(tag, directory.path()), Err(FsError::Tag(_))), "{tag:?}");
    }
}

#[test]
fn a_session_agrees_on_large_writes_and_acls() {
    let directory = tempfile::tempdir().unwrap();
    let (flags, max_write) = Driver::without_session(directory.path()).init().unwrap();
    assert_eq!(max_write, 1 << 20);
    let (posix_acl, killpriv_v2, export, writeback) = (1 << 20, 1 << 28, 1 << 4, 1 << 16);
    assert_eq!(flags & (posix_acl | killpriv_v2), posix_acl | killpriv_v2);
    assert_eq!(flags & (export | writeback), 0);
}

#[test]
fn a_file_is_written_read_renamed_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(directory.path());
    let (file, handle) = driver.create(ROOT, "a", libc::O_RDWR, 0o100_666).unwrap();
    assert_eq!(file.mode, 0o100_644, "the umask applies");
    let data: Vec<u8> = (0..1 << 20).map(|byte| (byte % 251) as u8).collect();
    assert_eq!(driver.write(file.node, handle, &data, 0), Ok(1 << 20));
    assert_eq!(driver.read(file.node, handle, 1 << 20).unwrap(), data);
    assert_eq!(fs::read(directory.path().join("a")).unwrap(), data);
    driver.truncate(file.node, 3).unwrap();
    assert_eq!(driver.getattr(file.node, Some(handle)).unwrap().size, 3);
    driver.release(file.node, handle).unwrap();
    assert_eq!(driver.release(file.node, handle), Err(libc::EBADF));

    let sub = driver.mkdir(ROOT, "sub", 0o755, 0).unwrap();
    driver.rename((ROOT, "a"), (sub.node, "b")).unwrap();
    assert_eq!(driver.lookup(ROOT, "a"), Err(libc::ENOENT));
    assert_eq!(driver.lookup(sub.node, "b").unwrap().node, file.node);
    assert_eq!(driver.rmdir(ROOT, "sub"), Err(libc::ENOTEMPTY));
    driver.unlink(sub.node, "b").unwrap();
    driver.rmdir(ROOT, "sub").unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn links_and_listing_agree_on_inode_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(directory.path());
    let (file, _) = driver.create(ROOT, "one", libc::O_RDWR, 0o100_644).unwrap();
    let second = driver.link(file.node, ROOT, "two").unwrap();
    assert_eq!((second.node, second.links), (file.node, 2));
    let ino = fs::metadata(directory.path().join("one")).unwrap().ino();
    assert_eq!(file.ino, ino);
    let names = driver.names(ROOT).unwrap();
    assert_eq!(names, [("one".to_owned(), ino), ("two".to_owned(), ino)]);
    assert_eq!(driver.getattr(file.node, None).unwrap().links, 2, "listing forgets nothing");
}

#[test]
fn a_long_directory_is_listed_whole() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..500 {
        fs::write(directory.path().join(format!("file-{number:03}")), "").unwrap();
    }
    let names = Driver::new(directory.path()).names(ROOT).unwrap();
    assert_eq!(names.len(), 500);
    assert_eq!(names[499].0, "file-499");
}

#[test]
fn attributes_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(directory.path());
    let (file, _) = driver.create(ROOT, "a", libc::O_RDWR, 0o100_644).unwrap();
    match driver.setxattr(file.node, "user.colour", b"green") {
        Err(libc::EOPNOTSUPP) => return kiai_skip::skip("no user attributes on this file system"),
        result => result.unwrap(),
    }
    assert_eq!(driver.getxattr(file.node, "user.colour", 64, 64).unwrap(), b"green");
    let huge = driver.getxattr(file.node, "user.colour", u32::MAX, 64).unwrap();
    assert_eq!(huge, b"green");
}

#[test]
fn attributes_of_the_hosts_own_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(directory.path());
    let (file, _) = driver.create(ROOT, "a", libc::O_RDWR, 0o100_644).unwrap();
    assert_eq!(driver.setxattr(file.node, "trusted.overlay.opaque", b"y"), Err(libc::EOPNOTSUPP));
}

#[test]
fn files_belong_to_the_guests_user_and_the_process_does_not_notice() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let before = process_state();
    let mut driver = Driver::new(directory.path());
    driver.user = (1000, 2000);
    // The directory is root's and closed: that the user may write here is for the guest to know.
    let (file, handle) = driver.create(ROOT, "file", libc::O_RDWR, 0o100_644).unwrap();
    assert_eq!(file.user, (1000, 2000));
    assert_eq!(driver.write(file.node, handle, b"x", 0), Ok(1));
    assert_eq!(driver.mkdir(ROOT, "sub", 0o755, 0).unwrap().user, (1000, 2000));
    assert_eq!(driver.symlink(ROOT, "link", "file").unwrap().user, (1000, 2000));
    assert_eq!(driver.mknod(ROOT, "fifo", 0o010_644, 0).unwrap().user, (1000, 2000));
    driver.user = (0, 0);
    assert_eq!(driver.mkdir(ROOT, "roots", 0o755, 0).unwrap().user, (0, 0));
    assert!(fs::symlink_metadata(directory.path().join("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(process_state(), before);
}

/// Ids, capabilities and umask of this thread.
fn process_state() -> Vec<String> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let wanted = ["Uid:", "Gid:", "CapEff:", "Umask:"];
    status.lines().filter(|line| wanted.iter().any(|key| line.starts_with(key))).map(Into::into).collect()
}

#[test]
fn writing_as_a_user_clears_the_set_user_id_bit() {
    if !is_root() {
        return;
    }
    const KILL_SUIDGID: u32 = 1 << 2;
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(directory.path());
    let (file, handle) = driver.create(ROOT, "tool", libc::O_RDWR, 0o104_755).unwrap();
    driver.write(file.node, handle, b"x", 0).unwrap();
    assert_eq!(mode(directory.path(), "tool"), 0o4755, "root keeps it");
    driver.write(file.node, handle, b"y", KILL_SUIDGID).unwrap();
    assert_eq!(mode(directory.path(), "tool"), 0o755);
}

#[test]
fn without_an_acl_the_umask_applies_to_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let plain = Driver::new(directory.path()).mkdir(ROOT, "plain", 0o777, 0o027).unwrap();
    assert_eq!(plain.mode & 0o7777, 0o750);
}

#[test]
fn a_default_acl_takes_the_umasks_place() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(directory.path());
    let plain = driver.mkdir(ROOT, "plain", 0o777, 0o027).unwrap();
    // Version 2; user::rwx, group::rwx, other::r-x (ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_OTHER).
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(0x01u16, 7u16), (0x04, 7), (0x20, 5)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(u32::MAX.to_le_bytes());
    }
    match driver.setxattr(plain.node, "system.posix_acl_default", &acl) {
        Err(libc::EOPNOTSUPP) => return kiai_skip::skip("no ACLs on this file system"),
        result => result.unwrap(),
    }
    let below = driver.mkdir(plain.node, "below", 0o777, 0o027).unwrap();
    assert_eq!(below.mode & 0o777, 0o775);
}

fn mode(directory: &Path, name: &str) -> u32 {
    fs::metadata(directory.join(name)).unwrap().mode() & 0o7777
}

#[test]
fn the_hosts_changes_are_seen() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(directory.path());
    assert_eq!(driver.lookup(ROOT, "late"), Err(libc::ENOENT));
    fs::write(directory.path().join("late"), "12345").unwrap();
    assert_eq!(driver.lookup(ROOT, "late").unwrap().size, 5);
}

#[test]
fn a_reset_device_starts_anew() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(directory.path());
    let (file, _) = driver.create(ROOT, "a", libc::O_RDWR, 0o100_644).unwrap();
    driver.device.reset().unwrap();
    driver.device.reset().unwrap();
    driver.activate();
    driver.init().unwrap();
    assert_eq!(driver.getattr(file.node, None), Err(libc::EBADF));
    assert!(driver.lookup(ROOT, "a").is_ok());
}
