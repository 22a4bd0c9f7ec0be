//! The first steps of PID 1: the guest's mounts, and a root from which pivot_root(2) is possible.
//!
//! The kernel starts the agent on the initramfs, whose root cannot be pivoted. So `/` is bound onto a directory, that
//! mount is moved over `/`, and the agent enters it. No file is copied, and libcontainer's pivot_root works.
//!
//! Every step here delays the first container: a step that can be done later belongs elsewhere.

use std::fs;
use std::path::Path;

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{Resource, Rlimit, setrlimit};

/// A mount of the guest: file system type, target, flags, options.
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
    // Upper directories with programs and device nodes of containers may be here: neither NOEXEC nor NODEV.
    ("tmpfs", "/run", NOTHING, "mode=755"),
    ("tmpfs", "/tmp", SECURE, "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", PLAIN, "nsdelegate,memory_recursiveprot"),
];

/// The symbolic links that programs expect in `/dev`.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts the guest's file systems and raises limits. To be called once by PID 1, before anything else.
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
    // The kernel derives them from the memory at boot: see `guest::lift_limits`.
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
