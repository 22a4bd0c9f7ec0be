//! Makes a bare kernel into a machine that containers can run on: modules, mounts, cgroups, loopback.
//!
//! Runs once, in order, before the command. Knows nothing of the command or of the wire.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiai_lab::Job;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::{self, MountFlags};
use rustix::process::{Resource, Rlimit};

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// What every later step needs, mounted in the initramfs: device nodes, processes, devices.
pub(crate) fn mount_initramfs() -> io::Result<()> {
    mount_pseudo("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755")?;
    mount_pseudo("proc", "/proc", PLAIN, c"")?;
    mount_pseudo("sysfs", "/sys", PLAIN, c"")
}

/// Loads the modules the initramfs brought, in the order of their names: they come numbered.
pub(crate) fn load_initramfs_modules() -> io::Result<()> {
    let mut modules: Vec<_> =
        fs::read_dir("/modules")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    modules.sort();
    for module in modules {
        let file = fs::File::open(&module)?;
        rustix::system::finit_module(file, c"", 0).map_err(|error| named(&module, error.into()))?;
    }
    Ok(())
}

/// Moves from the initramfs to the root disk and prepares everything `job` asks for.
pub(crate) fn prepare(job: &Job) -> io::Result<()> {
    enter_root_disk()?;
    for (directory, fstype, options) in [
        ("/dev/pts", "devpts", c"mode=0620,ptmxmode=0666"),
        ("/dev/shm", "tmpfs", c"mode=1777"),
        ("/dev/mqueue", "mqueue", c""),
        ("/dev/hugepages", "hugetlbfs", c""),
        ("/run", "tmpfs", c"mode=0755"),
        ("/tmp", "tmpfs", c"mode=1777"),
        ("/sys/kernel/debug", "debugfs", c""),
        ("/sys/fs/cgroup", "cgroup2", c"nsdelegate"),
        ("/sys/fs/bpf", "bpf", c"mode=0700"),
    ] {
        fs::create_dir_all(directory).or_else(exists)?;
        // What runs from /run or /tmp in a test is the test's business; devpts and cgroups hold no programs.
        mount_pseudo(fstype, directory, MountFlags::NOSUID, options)?;
    }
    delegate_cgroups()?;
    for (letter, mountpoint) in ('b'..='z').zip(&job.disks) {
        mount_disk(&format!("/dev/vd{letter}"), mountpoint)?;
    }
    for bind in job.binds.chunks_exact(2) {
        bind_path(&bind[0], &bind[1])?;
    }
    rustix::process::setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?;
    rustix::system::sethostname(b"lab")?;
    await_calibrated_clock()?;
    run(Command::new("/sbin/modprobe").arg("--all").args(&job.modules))?;
    run(Command::new("/sbin/ip").args(["link", "set", "lo", "up"]))
}

/// Waits until the kernel knows the frequency of its time stamp counter for good, which it measures for a second after its
/// boot. KVM keeps what it finds when it is loaded; on a busy host a first guess was 0.06 % too low, and then it left
/// every vCPU's counter half set up: a guest's timers were late by as long as the lab had been up (README.md).
fn await_calibrated_clock() -> io::Result<()> {
    const CURRENT: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let patience = Duration::from_secs(10);
    // Opened first: what is said after the look is heard.
    let mut log = fs::File::open("/dev/kmsg")?;
    if fs::read_to_string(CURRENT)?.trim() != "tsc-early" {
        return Ok(());
    }
    let deadline = Instant::now() + patience;
    let mut record = [0; 8192];
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))
            .map_err(io::Error::other)?;
        let mut ready = [PollFd::new(&log, PollFlags::IN)];
        if rustix::event::poll(&mut ready, Some(&left))? == 0 {
            return Err(io::Error::other(format!(
                "the clock is not calibrated after {} s",
                patience.as_secs()
            )));
        }
        match log.read(&mut record) {
            Ok(length) if says_calibrated(&record[..length]) => return Ok(()),
            Ok(_) => {}
            // Records were overwritten before they were read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a record of the kernel's log says that the clock is the counter, its frequency known.
fn says_calibrated(record: &[u8]) -> bool {
    let line = record.split(|&byte| byte == b'\n').next().unwrap_or_default();
    line.ends_with(b"Switched to clocksource tsc")
}

/// What `switch_root` does: the root disk becomes `/`, with the mounts made so far below it.
fn enter_root_disk() -> io::Result<()> {
    mount::mount("/dev/vda", "/root", "ext4", MountFlags::NOATIME, c"")
        .map_err(|error| named(Path::new("/dev/vda"), error.into()))?;
    for directory in ["dev", "proc", "sys"] {
        mount::mount_move(format!("/{directory}"), format!("/root/{directory}"))?;
    }
    rustix::process::chdir("/root")?;
    mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    // Containers' mounts must not be visible to each other's parents by surprise: the setting systemd makes.
    mount::mount_change("/", mount::MountPropagationFlags::SHARED | mount::MountPropagationFlags::REC)?;
    Ok(())
}

/// Offers every controller to child cgroups, as a service manager does for the groups it delegates.
fn delegate_cgroups() -> io::Result<()> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    let enable: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", enable.join(" "))
}

fn mount_disk(device: &str, mountpoint: &str) -> io::Result<()> {
    fs::create_dir_all(mountpoint)?;
    let writable =
        fs::read_to_string(format!("/sys/class/block/{}/ro", &device["/dev/".len()..]))?.trim() == "0";
    let flags = if writable { MountFlags::NOATIME } else { MountFlags::RDONLY };
    mount::mount(device, mountpoint, "ext4", flags, c"")
        .map_err(|error| named(Path::new(device), error.into()))
}

fn bind_path(source: &str, target: &str) -> io::Result<()> {
    let target = Path::new(target);
    if Path::new(source).is_dir() {
        fs::create_dir_all(target).map_err(|error| named(target, error))?;
    } else if !target.exists() {
        target.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(target, "").map_err(|error| named(target, error))?;
    }
    mount::mount_bind(source, target).map_err(|error| named(target, error.into()))
}

fn mount_pseudo(fstype: &str, target: &str, flags: MountFlags, options: &CStr) -> io::Result<()> {
    mount::mount(fstype, target, fstype, flags, options)
        .map_err(|error| named(Path::new(target), error.into()))
}

/// Runs a set-up command to its end; its standard error goes to the kernel console.
fn run(command: &mut Command) -> io::Result<()> {
    let status = command.stdin(Stdio::null()).status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {status}; the console says why")))
}

fn exists(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

fn named(what: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", what.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_guess_is_not_taken_for_the_measurement() {
        let record = |text: &str| format!("6,361,1965828,-;{text}\n SUBSYSTEM=clocksource\n");
        assert!(says_calibrated(record("clocksource: Switched to clocksource tsc").as_bytes()));
        assert!(!says_calibrated(record("clocksource: Switched to clocksource tsc-early").as_bytes()));
        assert!(!says_calibrated(
            record("tsc: Refined TSC clocksource calibration: 2599.998 MHz").as_bytes()
        ));
        assert!(!says_calibrated(b""));
    }
}
