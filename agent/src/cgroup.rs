//! A container's cgroup: kill, freeze, limits and figures (kernel cgroup-v2.rst).
//!
//! The guest has only the unified hierarchy, at `/sys/fs/cgroup`. A change of state is awaited by polling the file that
//! reports it (the kernel wakes a poll of `cgroup.events`), never by reading again after a delay.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use kiai_protocol::agent::{IoStats, StatsContainerResponse};
use libcgroups::common::{CgroupManager, ControllerOpt};
use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;
use tokio::io::Interest;

use crate::sys;

mod limits;

pub use limits::Limits;

/// The mount point of the hierarchy.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Name of the parent of every container's cgroup, in [`ROOT`].
const PARENT: &str = "kiai";

/// One container's cgroup; it exists from create to remove.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
    /// Its path in the hierarchy, as `linux.cgroupsPath` has it.
    within: String,
}

/// Enables every controller in the cgroups of containers. To be called once, before the first container.
pub fn delegate_controllers() -> std::io::Result<()> {
    let root = Path::new(ROOT);
    let available = std::fs::read_to_string(root.join("cgroup.controllers"))?;
    let all: String = available.split_ascii_whitespace().map(|name| format!("+{name} ")).collect();
    std::fs::write(root.join("cgroup.subtree_control"), all.trim_end())?;
    let parent = root.join(PARENT);
    std::fs::create_dir_all(&parent)?;
    std::fs::write(parent.join("cgroup.subtree_control"), all.trim_end())
}

/// Opens the directory of the parent of every container's cgroup.
pub fn parent() -> std::io::Result<File> {
    File::open(Path::new(ROOT).join(PARENT))
}

impl Cgroup {
    /// The cgroup of a container, which need not exist. The id has been checked.
    pub fn of(container_id: &str) -> Self {
        let within = format!("/{PARENT}/{container_id}");
        Self { path: PathBuf::from(format!("{ROOT}{within}")), within }
    }

    /// Makes the cgroup, so that it can be confined before a process runs in it.
    pub fn make(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.path)
    }

    /// Attaches the program that decides whenever a process of the cgroup opens or makes a device node, in place of
    /// `replaced`.
    pub fn filter_devices(&self, program: &OwnedFd, replaced: Option<&OwnedFd>) -> std::io::Result<()> {
        let directory = File::open(&self.path)?;
        sys::attach_device_program(directory.as_fd(), program.as_fd(), replaced.map(AsFd::as_fd))
    }

    /// The cgroup's path as `linux.cgroupsPath` has it.
    pub fn within_hierarchy(&self) -> &str {
        &self.within
    }

    /// Kills every process in the cgroup; no error if the cgroup does not exist.
    pub fn kill(&self) -> std::io::Result<()> {
        match std::fs::write(self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The pids of the cgroup and its children, in the guest's root namespace.
    pub fn pids(&self) -> std::io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for directory in descendants(&self.path)? {
            match std::fs::read_to_string(directory.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                // A threaded child has no processes of its own; a child that was removed meanwhile has none.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pids)
    }

    /// Freezes or thaws every process in the cgroup and waits until the kernel has done so.
    pub async fn freeze(&self, frozen: bool) -> std::io::Result<()> {
        std::fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        let wanted = u64::from(frozen);
        wait_for(&self.path.join("cgroup.events"), |events| value(events, "frozen") == Some(wanted)).await
    }

    /// The limits in force.
    pub fn limits(&self) -> std::io::Result<Limits> {
        Limits::read(&self.path)
    }

    /// Sets the limits that `resources` has; the others stay.
    pub fn update(&self, resources: &LinuxResources) -> anyhow::Result<()> {
        let manager = libcgroups::v2::manager::Manager::new(ROOT.into(), self.within.clone().into())?;
        let options =
            ControllerOpt { resources, disable_oom_killer: false, oom_score_adj: None, freezer_state: None };
        Ok(manager.apply(&options)?)
    }

    /// Kills the processes that are left, waits for their end and removes the cgroup with its children.
    pub async fn remove(&self) -> anyhow::Result<()> {
        self.kill().with_context(|| format!("kill {:?}", self.path))?;
        let events = self.path.join("cgroup.events");
        match wait_for(&events, |events| value(events, "populated") == Some(0)).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| format!("wait for {:?} to empty", self.path))?,
        }
        for directory in descendants(&self.path)?.iter().rev() {
            std::fs::remove_dir(directory).with_context(|| format!("remove {directory:?}"))?;
        }
        Ok(())
    }

    /// The number of processes that the kernel's OOM killer has killed in the cgroup.
    pub fn oom_kills(&self) -> u64 {
        let events = std::fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        value(&events, "oom_kill").unwrap_or(0)
    }

    /// Waits until the OOM killer has killed more than `seen` processes; returns the new number.
    pub async fn oom_killed(&self, seen: u64) -> std::io::Result<u64> {
        let mut count = seen;
        wait_for(&self.path.join("memory.events"), |events| {
            count = value(events, "oom_kill").unwrap_or(0);
            count > seen
        })
        .await?;
        Ok(count)
    }

    /// Statistics of the cgroup; those of an absent controller are zero.
    pub fn stats(&self) -> StatsContainerResponse {
        let read = |name: &str| std::fs::read_to_string(self.path.join(name)).unwrap_or_default();
        let single = |name: &str| read(name).trim().parse().unwrap_or(0);
        let cpu = read("cpu.stat");
        let memory = read("memory.stat");
        let of = |text: &str, key: &str| value(text, key).unwrap_or(0);
        StatsContainerResponse {
            cpu_usage_us: of(&cpu, "usage_usec"),
            cpu_user_us: of(&cpu, "user_usec"),
            cpu_system_us: of(&cpu, "system_usec"),
            cpu_periods: of(&cpu, "nr_periods"),
            cpu_throttled_periods: of(&cpu, "nr_throttled"),
            cpu_throttled_us: of(&cpu, "throttled_usec"),
            memory_usage: single("memory.current"),
            // "max" is not a number and becomes 0: no limit.
            memory_limit: single("memory.max"),
            memory_anon: of(&memory, "anon"),
            memory_file: of(&memory, "file"),
            memory_kernel: of(&memory, "kernel"),
            memory_inactive_file: of(&memory, "inactive_file"),
            memory_page_faults: of(&memory, "pgfault"),
            memory_major_page_faults: of(&memory, "pgmajfault"),
            swap_usage: single("memory.swap.current"),
            pids_current: single("pids.current"),
            pids_limit: single("pids.max"),
            io: io_stats(&read("io.stat")),
            oom_kills: self.oom_kills(),
            ..Default::default()
        }
    }
}

/// `path` and every directory below it, parents first.
fn descendants(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while next < found.len() {
        match std::fs::read_dir(&found[next]) {
            Ok(entries) => {
                for entry in entries.flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        found.push(entry.path());
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound && next > 0 => {}
            Err(error) => return Err(error),
        }
        next += 1;
    }
    Ok(found)
}

/// Waits until `done` accepts the contents of a cgroup file whose changes wake a poll.
async fn wait_for(path: &Path, mut done: impl FnMut(&str) -> bool) -> std::io::Result<()> {
    let file = sys::watch(File::open(path)?.into(), Interest::PRIORITY)?;
    let mut buffer = [0; 1024];
    loop {
        // Reading from the start also arms the next wake-up.
        let length = match rustix::io::pread(file.get_ref(), &mut buffer, 0) {
            Err(Errno::NODEV) => return Err(ErrorKind::NotFound.into()),
            other => other?,
        };
        if done(&String::from_utf8_lossy(&buffer[..length])) {
            return Ok(());
        }
        file.ready(Interest::PRIORITY).await?.clear_ready();
    }
}

/// The number of `key` in a flat keyed file.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Parses lines like `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io_stats(text: &str) -> Vec<IoStats> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (major, minor) = fields.next()?.split_once(':')?;
            let mut stats =
                IoStats { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Default::default() };
            for (key, value) in fields.filter_map(|field| field.split_once('=')) {
                let value = value.parse().unwrap_or(0);
                match key {
                    "rbytes" => stats.read_bytes = value,
                    "wbytes" => stats.write_bytes = value,
                    "rios" => stats.read_operations = value,
                    "wios" => stats.write_operations = value,
                    _ => {}
                }
            }
            Some(stats)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_keyed_files_are_read_by_whole_keys() {
        let text = "low 0\noom 2\noom_kill 3\noom_group_kill 0\n";
        assert_eq!(value(text, "oom"), Some(2));
        assert_eq!(value(text, "oom_kill"), Some(3));
        assert_eq!(value(text, "oom_k"), None);
    }

    #[test]
    fn io_figures_are_read_and_unknown_lines_passed_over() {
        let stats = io_stats("254:0 rbytes=4096 wbytes=1 rios=2 wios=3 dbytes=0 dios=0\nnonsense\n8:16\n");
        assert_eq!(stats.len(), 2);
        assert_eq!((stats[0].major, stats[0].minor), (254, 0));
        assert_eq!((stats[0].read_bytes, stats[0].write_bytes), (4096, 1));
        assert_eq!((stats[0].read_operations, stats[0].write_operations), (2, 3));
        assert_eq!((stats[1].major, stats[1].minor, stats[1].read_bytes), (8, 16, 0));
    }

    #[tokio::test]
    async fn removing_a_cgroup_that_is_gone_is_done_at_once() {
        Cgroup::of("no-such-container-here").remove().await.unwrap();
    }
}
