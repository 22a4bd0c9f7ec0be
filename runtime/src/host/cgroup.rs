//! The host's cgroup of a sandbox: its process, guest memory and vCPUs included, is accounted to the pod.
//!
//! cgroup v2 (`admin-guide/cgroup-v2.rst`), v1 and the hybrid of both: every hierarchy that is mounted gets the
//! same path. Best effort, because a sandbox without one works as well.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

const ROOT: &str = "/sys/fs/cgroup";

/// How long the threads of a process may be on their way out.
const WAY_OUT: Duration = Duration::from_secs(2);

/// Turns a spec's `cgroupsPath` into a path below the hierarchies: "slice:prefix:name" is systemd's way to write
/// `/slice/…/prefix-name.scope`.
pub fn relative_path(spec: &Path) -> PathBuf {
    let text = spec.to_string_lossy();
    let parts: Vec<&str> = text.split(':').collect();
    let [slice, prefix, name] = parts[..] else {
        return spec.components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect();
    };
    let mut path = PathBuf::new();
    // "a-b-c.slice" lies in "a.slice/a-b.slice".
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        if at > 0 {
            path.push(format!("{}.slice", &stem[..at]));
        }
    }
    path.push(if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") });
    path
}

/// The cgroup a process joined, in every hierarchy that took it.
#[derive(Debug, Default)]
pub struct Joined(Vec<Membership>);

#[derive(Debug)]
struct Membership {
    /// Where the hierarchy is mounted.
    root: PathBuf,
    /// Directories that were not there before, from the outermost to the group itself.
    made: Vec<PathBuf>,
}

impl Joined {
    /// Moves the process to the root of each hierarchy again and removes what is empty.
    pub fn leave(self) {
        for Membership { root, made } in self.0 {
            let left = std::fs::write(root.join("cgroup.procs"), "0");
            tracing::debug!(root = %root.display(), ?left, "leave cgroup");
            if let Some(group) = made.last() {
                await_empty(group);
            }
            // A parent of ours that another sandbox uses by now is not empty, and stays.
            made.iter().rev().for_each(|group| remove_empty(group));
        }
    }
}

/// Puts this process into the cgroup at `path` (relative) of every hierarchy, making it as needed.
pub fn join(path: &Path) -> Joined {
    let mut joined = Joined::default();
    for root in hierarchies() {
        let group = root.join(path);
        let mut made = Vec::new();
        let result = make(&root, path, &mut made)
            .and_then(|()| inherit_cpuset(&root, path))
            .and_then(|()| std::fs::write(group.join("cgroup.procs"), "0"));
        match result {
            Ok(()) => joined.0.push(Membership { root, made }),
            Err(error) => {
                tracing::info!(group = %group.display(), %error, "the sandbox stays in its parent's cgroup");
                made.iter().rev().for_each(|group| remove_empty(group));
            }
        }
    }
    joined
}

/// Waits until nothing is in a group of the unified hierarchy (`cgroup.events` wakes a poll). A thread that has
/// been joined may still be on its way out, and such a one is not moved with its process.
fn await_empty(group: &Path) {
    use rustix::event::PollFd;
    use rustix::event::PollFlags;
    let Ok(events) = std::fs::File::open(group.join("cgroup.events")) else { return };
    let deadline = Instant::now() + WAY_OUT;
    loop {
        let mut text = [0; 128];
        // Reading from the start is also what arms the next wake-up.
        let Ok(length) = events.read_at(&mut text, 0) else { return };
        if text[..length].starts_with(b"populated 0") {
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(limit) = left.try_into() else { return };
        let changed = rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&limit));
        if !matches!(changed, Ok(1..)) {
            tracing::debug!(group = %group.display(), "something stays in the cgroup");
            return;
        }
    }
}

/// Makes the group and its parents; `made` gets those that were not there.
fn make(root: &Path, path: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut group = root.to_path_buf();
    for part in path.components() {
        group.push(part);
        match std::fs::create_dir(&group) {
            Ok(()) => made.push(group.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes what a dead sandbox left, as far as it is empty.
pub fn remove(path: &Path) {
    for root in hierarchies() {
        remove_empty(&root.join(path));
    }
}

fn remove_empty(group: &Path) {
    match std::fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(group = %group.display(), %error, "cgroup stays");
        }
        _ => {}
    }
}

/// v2: the one tree. v1 and hybrid: one directory for each controller, and `unified`.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.procs").exists() {
        return vec![root.into()];
    }
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        // "cpu" and "cpuacct" are links to "cpu,cpuacct".
        .filter(|entry| entry.file_type().is_ok_and(|typ| typ.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect();
    found.sort();
    found
}

/// A v1 cpuset takes no process before it has CPUs and memory nodes.
fn inherit_cpuset(root: &Path, path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut parent = root.to_path_buf();
        for part in path.components() {
            let child = parent.join(part);
            let (from, to) = (parent.join(file), child.join(file));
            // In v2 an empty one means "as the parent".
            if root.ends_with("cpuset") && std::fs::read_to_string(&to)?.trim().is_empty() {
                std::fs::write(&to, std::fs::read_to_string(&from)?)?;
            }
            parent = child;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_write_a_path_are_understood() {
        for (spec, path) in [
            ("/default/redis", "default/redis"),
            ("relative/../x", "relative/x"),
            ("system.slice:cri:abc", "system.slice/cri-abc.scope"),
            ("kube-pods-podx.slice:cri:abc", "kube.slice/kube-pods.slice/kube-pods-podx.slice/cri-abc.scope"),
            ("user.slice::abc", "user.slice/abc.scope"),
        ] {
            assert_eq!(relative_path(Path::new(spec)), Path::new(path), "{spec}");
        }
    }
}
