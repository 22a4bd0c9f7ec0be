//! The init of the pod's pid namespace, which containers join that share another's or have none of their own. Their
//! processes see each other and this one, never those of the guest itself.
//!
//! The helper makes the namespace and starts the agent's program in it, from a read-only mount; that program leaves
//! the guest's root and mounts before it reports that it is ready, and from then on does nothing: the kernel reaps its
//! children for it.

use std::convert::Infallible;
use std::fs::{File, create_dir};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::Mode;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};

use crate::sys;

/// The argument with which the agent's program runs as this init.
pub const ARGUMENT: &str = "pod-init";

/// The helper's mount point, in a mount namespace of its own.
const MOUNT_POINT: &str = "/tmp";
const PROGRAM: &str = "/tmp/init";

/// The byte that the init writes when it is ready.
const READY: u8 = b'r';

/// Starts the init in a new pid namespace, from the helper; returns its pid in the guest's root namespace.
pub(super) fn start() -> anyhow::Result<i32> {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).context("make a pid namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("keep mounts apart")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", MOUNT_POINT, "tmpfs", flags, c"mode=755").context("mount a directory for the init")?;
    File::create(PROGRAM).context("create a mount point for the program")?;
    // By its path: the link itself leads to a mount of the namespace that was left.
    let program = std::env::current_exe().context("find the program")?;
    mount_bind(&program, PROGRAM).with_context(|| format!("bind {program:?}"))?;
    // Otherwise a process that may read /proc/1/exe could write to it.
    mount_remount(PROGRAM, MountFlags::BIND | MountFlags::RDONLY | flags, c"")
        .context("protect the program")?;
    let mut child = Command::new(PROGRAM)
        .arg(ARGUMENT)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("start the init")?;
    // One byte, or the reason and the end.
    let stdout = child.stdout.as_mut().context("the init has a standard output")?;
    let mut said = [0; 1024];
    let length = stdout.read(&mut said)?;
    if said[..length] != [READY] {
        let reason = String::from_utf8_lossy(&said[..length]);
        bail!("the init of the pid namespace does not start: {reason}");
    }
    i32::try_from(child.id()).context("a pid is an i32")
}

/// Runs the init. Returns only on an error, which it writes to the helper.
pub fn main() -> anyhow::Result<()> {
    let Err(error) = run();
    println!("{error:#}");
    Err(error)
}

fn run() -> anyhow::Result<Infallible> {
    ensure!(std::process::id() == 1, "the pod's init runs only as PID 1 of a namespace");
    // To be killed last by the OOM killer, as every process of the namespace dies with it; not required.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    sys::reap_by_kernel();
    let null = File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    leave_guest().context("leave the guest's root")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let none = rustix::thread::CapabilitySet::empty();
    let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).context("drop every capability")?;
    rustix::stdio::dup2_stderr(null.as_fd())?;
    std::io::stdout().write_all(&[READY])?;
    std::io::stdout().flush()?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    drop(null);
    loop {
        // Nothing wakes it: PID 1 gets only the signals for which it has handlers.
        nix::unistd::pause();
    }
}

/// Makes an empty directory the root, and detaches every other mount of the namespace.
fn leave_guest() -> anyhow::Result<()> {
    let empty = Path::new(MOUNT_POINT).join("root");
    create_dir(&empty)?;
    mount(
        "tmpfs",
        &empty,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        c"mode=555",
    )?;
    std::env::set_current_dir(&empty)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    rustix::process::umask(Mode::empty());
    Ok(mount_remount(
        "/",
        MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        c"mode=555",
    )?)
}
