//! No request leads out of the share, to a special file, or to more than a guest's due.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Instant;

use crate::calls::ROOT;
use crate::driver::Body;
use crate::driver::Driver;

/// A share with a secret beside it; the temporary directory, the driver and the secret's inode number.
fn share_beside_a_secret() -> (tempfile::TempDir, Driver, u64) {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::create_dir(directory.path().join("outside")).unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let ino = fs::metadata(&secret).unwrap().ino();
    let driver = Driver::new(&shared);
    (directory, driver, ino)
}

#[test]
fn no_name_leads_out() {
    let (_directory, mut driver, _) = share_beside_a_secret();
    let sub = driver.mkdir(ROOT, "sub", 0o755, 0).unwrap().node;
    let climbs: [&[u8]; 9] =
        [b".", b"..", b"/", b"../secret", b"../..", b"/etc/passwd", b"sub/..", b"./..", b""];
    for name in climbs {
        for parent in [ROOT, sub] {
            let text = String::from_utf8_lossy(name).into_owned();
            assert_eq!(driver.lookup(parent, name), Err(libc::EINVAL), "lookup {text:?}");
            assert_eq!(driver.mkdir(parent, &text, 0o755, 0), Err(libc::EINVAL), "mkdir {text:?}");
            assert_eq!(driver.symlink(parent, &text, "x"), Err(libc::EINVAL), "symlink {text:?}");
            assert_eq!(driver.mknod(parent, &text, 0o100_644, 0), Err(libc::EINVAL), "mknod {text:?}");
            assert_eq!(driver.unlink(parent, name), Err(libc::EINVAL), "unlink {text:?}");
            assert_eq!(driver.rmdir(parent, name), Err(libc::EINVAL), "rmdir {text:?}");
            assert_eq!(driver.link(sub, parent, &text), Err(libc::EINVAL), "link {text:?}");
            assert_eq!(driver.rename((ROOT, "sub"), (parent, &text)), Err(libc::EINVAL), "to {text:?}");
            assert_eq!(driver.rename((parent, &text), (ROOT, "y")), Err(libc::EINVAL), "from {text:?}");
            let created = driver.create(parent, &text, libc::O_RDWR, 0o100_644);
            assert_eq!(created, Err(libc::EINVAL), "create {text:?}");
        }
    }
    let long_climb = "../".repeat(200) + "etc/passwd";
    assert_eq!(driver.lookup(ROOT, long_climb), Err(libc::EINVAL));
    // A zero byte ends the name; what follows it never reaches the host.
    assert_eq!(driver.lookup(ROOT, b"sub\0/../../secret").unwrap().node, sub);
    assert_eq!(driver.lookup(ROOT, "a".repeat(300)), Err(libc::ENAMETOOLONG));
}

#[test]
fn a_directory_moved_out_of_the_share_leads_nowhere_else() {
    let (directory, mut driver, _) = share_beside_a_secret();
    let sub = driver.mkdir(ROOT, "sub", 0o755, 0).unwrap().node;
    fs::rename(directory.path().join("shared/sub"), directory.path().join("outside/sub")).unwrap();
    assert_eq!(driver.lookup(sub, ".."), Err(libc::EINVAL));
}

#[test]
fn symbolic_links_are_never_followed() {
    let (directory, mut driver, secret) = share_beside_a_secret();
    let target = directory.path().join("secret");
    symlink(&target, directory.path().join("shared/link")).unwrap();
    symlink(directory.path(), directory.path().join("shared/up")).unwrap();

    let link = driver.lookup(ROOT, "link").unwrap();
    assert_ne!(link.ino, secret);
    assert_eq!(driver.readlink(link.node).unwrap(), target.as_os_str().as_encoded_bytes());
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_PATH, libc::O_PATH | libc::O_DIRECTORY] {
        assert!(driver.open(link.node, flags).is_err(), "open with {flags:#o}");
        if let Ok((entry, handle)) = driver.create(ROOT, "link", flags, 0o100_644) {
            panic!("{flags:#o} opened {:?}", driver.getattr(entry.node, Some(handle)));
        }
    }
    assert!(driver.truncate(link.node, 0).is_err());
    let up = driver.lookup(ROOT, "up").unwrap().node;
    assert_eq!(driver.lookup(up, "secret"), Err(libc::ENOTDIR));
    assert!(driver.setxattr(link.node, "user.x", b"y").is_err());
    assert!(driver.create(up, "new", libc::O_RDWR, 0o100_644).is_err());
    assert_eq!(fs::read_to_string(target).unwrap(), "secret");
    assert!(!directory.path().join("new").exists());
}

#[test]
fn special_files_are_shown_but_never_opened() {
    let (directory, mut driver, _) = share_beside_a_secret();
    let socket = directory.path().join("shared/socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut nodes = vec![
        driver.mknod(ROOT, "fifo", libc::S_IFIFO | 0o666, 0).unwrap(),
        driver.lookup(ROOT, "socket").unwrap(),
    ];
    // /dev/kmsg and a disk, where this process may make nodes at all.
    for (name, mode, device) in [("kmsg", libc::S_IFCHR, 1 << 8 | 11), ("disk", libc::S_IFBLK, 7 << 8)] {
        nodes.extend(driver.mknod(ROOT, name, mode | 0o666, device));
    }
    let started = Instant::now();
    for node in nodes {
        for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR | libc::O_TRUNC] {
            assert_eq!(driver.open(node.node, flags), Err(libc::EBADF), "{node:?}");
        }
        assert_eq!(driver.truncate(node.node, 0), Err(libc::EBADF), "{node:?}");
        assert!(driver.names(node.node).is_err(), "{node:?}");
    }
    assert_eq!(driver.create(ROOT, "fifo", libc::O_RDWR, 0o100_644), Err(libc::EBADF));
    assert!(started.elapsed().as_secs() < 5, "something waited");
}

#[test]
fn nodes_and_handles_the_guest_was_not_told_of_do_not_exist() {
    let (_directory, mut driver, _) = share_beside_a_secret();
    for node in [0, 2, 3, 1 << 47, u64::MAX] {
        assert_eq!(driver.getattr(node, None), Err(libc::EBADF));
        assert_eq!(driver.lookup(node, "secret"), Err(libc::EBADF));
        assert_eq!(driver.open(node, 0), Err(libc::EBADF));
    }
    let (file, handle) = driver.create(ROOT, "a", libc::O_RDWR, 0o100_644).unwrap();
    let (other, _) = driver.create(ROOT, "b", libc::O_RDWR, 0o100_644).unwrap();
    assert_eq!(driver.read(other.node, handle, 1), Err(libc::EBADF), "another file's handle");
    assert_eq!(driver.read(file.node, handle + 99, 1), Err(libc::EBADF));
}

#[test]
fn open_descriptors_are_not_inherited_and_the_root_cannot_be_removed() {
    let (directory, mut driver, _) = share_beside_a_secret();
    let (_, _handle) = driver.create(ROOT, "kept", libc::O_RDWR, 0o100_644).unwrap();
    let shared = directory.path().join("shared");
    for fd in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let open = fs::read_link(fd.path()).unwrap_or_default();
        if open.starts_with(&shared) {
            let info = PathBuf::from("/proc/self/fdinfo").join(fd.file_name());
            let info = fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            let flags = i32::from_str_radix(flags, 8).unwrap();
            assert_ne!(flags & libc::O_CLOEXEC, 0, "{open:?}");
        }
    }
    assert!(driver.rmdir(ROOT, "kept").is_err());
    assert!(shared.exists());
}

#[test]
fn requests_before_the_session_starts_find_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = Driver::without_session(directory.path());
    assert_eq!(driver.lookup(ROOT, "x"), Err(libc::EBADF));
    assert!(driver.call(99, ROOT, Body::new(), 0).is_err());
}
