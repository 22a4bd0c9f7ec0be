//! The first things PID 1 does: mounts, and a root that containers can leave.
//!
//! The kernel starts the agent on the initramfs, whose root is no mount of its own: pivot_root(2) is not
//! possible from there. So `/` is bound onto a directory, that mount is moved over `/`, and the agent enters
//! it. No file is copied, and libcontainer's pivot_root works as everywhere else.
//!
//! Everything here is on the way to the first container: nothing that can wait belongs here.

use std::fs;
use std::path::Path;

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{Resource, Rlimit, setrlimit};

/// A mount of the guest itself: type, target, flags, options.
type Mount = (&'static str, &'static str, MountFlags, &'static str);

const NOTHING: MountFlags = MountFlags::empty();
const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const SECURE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

const MOUNTS: [Mount; 9] = [
    ("proc", "/proc", PLAIN, ""),
    ("sysfs", "/sys", PLAIN, ""),
    ("devtmpfs", "/dev", MountFlags::NOSUID, "mode=755"),
    ("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), "mode=620,gid=5,ptmxmode=666"),
    ("tmpfs", "/dev/shm", SECURE, "mode=1777"),
    ("mqueue", "/dev/mqueue", PLAIN, ""),
    // Programs of images are run from upper directories here: no NOEXEC, and device nodes are the spec's.
    ("tmpfs", "/run", NOTHING, "mode=755"),
    ("tmpfs", "/tmp", SECURE, "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", PLAIN, "nsdelegate,memory_recursiveprot"),
];

/// Links every program expects below `/dev`.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Makes the guest ready for the agent. To be called once, first of all, by PID 1.
pub fn boot() -> anyhow::Result<()> {
    leave_initramfs().context("leave the root of the initramfs")?;
    for (fstype, target, flags, options) in MOUNTS {
        fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
        let options = std::ffi::CString::new(options).expect("no option has a NUL");
        mount(fstype, target, fstype, flags, options.as_c_str())
            .with_context(|| format!("mount {fstype} on {target}"))?;
    }
    for (target, link) in LINKS {
        match rustix::fs::symlink(target, link) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("link {link}")),
        }
    }
    // Derived from the memory at boot, which is little: see `guest::lift_limits`.
    for resource in [Resource::Nproc, Resource::Sigpending] {
        let _ = setrlimit(resource, Rlimit { current: None, maximum: None });
    }
    let files = Some(1 << 20);
    setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files }).context("raise RLIMIT_NOFILE")
}

fn leave_initramfs() -> anyhow::Result<()> {
    let root = Path::new("/root");
    fs::create_dir_all(root)?;
    mount_bind("/", root).context("bind / onto /root")?;
    std::env::set_current_dir(root)?;
    mount_move(".", "/").context("move the bound root over /")?;
    rustix::process::chroot(".").context("enter the bound root")?;
    Ok(std::env::set_current_dir("/")?)
}
