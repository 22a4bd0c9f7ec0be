//! The sandbox's cgroup on the host, by which its process, with guest memory and vCPUs, is accounted to the pod.
//!
//! cgroup v2 (`admin-guide/cgroup-v2.rst`), v1 and the hybrid of both: the path is the same in every mounted hierarchy.
//! A failure is logged only, because a sandbox works without a cgroup as well.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

const ROOT: &str = "/sys/fs/cgroup";

/// How long to wait for threads that are ending.
const WAY_OUT: Duration = Duration::from_secs(2);

/// The path below the hierarchies for a spec's `cgroupsPath`; systemd's "slice:prefix:name" is
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

/// The cgroup that this process has joined, in every hierarchy in which that was possible.
#[derive(Debug, Default)]
pub struct Joined(Vec<Membership>);

#[derive(Debug)]
struct Membership {
    /// The hierarchy's mount point.
    root: PathBuf,
    /// The directories that were made, from the outermost to the group itself.
    made: Vec<PathBuf>,
}

impl Joined {
    /// Moves the process to the root of each hierarchy and removes the groups that were made and are empty.
    pub fn leave(self) {
        for Membership { root, made } in self.0 {
            let left = std::fs::write(root.join("cgroup.procs"), "0");
            tracing::debug!(root = %root.display(), ?left, "leave cgroup");
            if let Some(group) = made.last() {
                await_empty(group);
            }
            // A parent that another sandbox uses by now is not empty, and stays.
            made.iter().rev().for_each(|group| remove_empty(group));
        }
    }
}

/// Moves this process to the cgroup at the relative `path` of every hierarchy; makes missing groups.
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

/// Waits until a group of the unified hierarchy is empty (the kernel wakes a poll of `cgroup.events`): a thread that is
/// ending is not moved with its process.
fn await_empty(group: &Path) {
    use rustix::event::PollFd;
    use rustix::event::PollFlags;
    let Ok(events) = std::fs::File::open(group.join("cgroup.events")) else { return };
    let deadline = Instant::now() + WAY_OUT;
    loop {
        let mut text = [0; 128];
        // Reading from the start also arms the next wake-up.
        let Ok(length) = events.read_at(&mut text, 0) else { return };
        if text[..length].starts_with(b"populated 0") {
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(limit) = left.try_into() else { return };
        let changed = rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&limit));
        if !matches!(changed, Ok(1..)) {
            tracing::debug!(group = %group.display(), "a process stays in the cgroup");
            return;
        }
    }
}

/// Makes the group and its parents; adds those that did not exist to `made`.
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

/// Removes the groups that a dead sandbox left, if they are empty.
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

/// The mount points of the hierarchies. v2 has one; v1 and hybrid have one for each controller, and `unified`.
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

/// Copies CPUs and memory nodes from the parent: without them a cpuset of v1 takes no process.
fn inherit_cpuset(root: &Path, path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut parent = root.to_path_buf();
        for part in path.components() {
            let child = parent.join(part);
            let (from, to) = (parent.join(file), child.join(file));
            // In v2 an empty file means the parent's value.
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
