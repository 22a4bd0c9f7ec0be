//! A snapshot of a cgroup's limits, from which an update that failed half-way is undone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

/// Extensions of the files that hold limits (kernel cgroup-v2.rst). Counters, and files that act when written, have
/// other extensions.
const LIMITS: [&str; 10] =
    ["max", "min", "high", "low", "weight", "idle", "burst", "cpus", "mems", "partition"];

/// The contents of each limit file of one cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits(BTreeMap<PathBuf, String>);

impl Limits {
    /// Reads every limit file in a cgroup's directory.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let mut limits = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let is_limit = path.extension().is_some_and(|ending| LIMITS.iter().any(|limit| ending == *limit));
            // `cgroup.max.depth` and its like limit no resource.
            let is_own = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"cgroup."));
            // An update sets no limit that cannot be read.
            if is_limit
                && !is_own
                && let Ok(text) = fs::read_to_string(&path)
            {
                limits.insert(path, text);
            }
        }
        Ok(Self(limits))
    }

    /// Restores the limits that have changed. Goes on after an error, and returns the first.
    pub fn restore(&self) -> io::Result<()> {
        let mut result = Ok(());
        for (path, wanted) in &self.0 {
            let restored = restore_one(path, wanted);
            result = result.and(
                restored
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            );
        }
        result
    }
}

fn restore_one(path: &Path, wanted: &str) -> io::Result<()> {
    let now = fs::read_to_string(path)?;
    if now == wanted {
        return Ok(());
    }
    lines_to_write(&now, wanted).iter().try_for_each(|line| fs::write(path, line))
}

/// The lines to write, one write each. A file with a line for each device takes one line at a time; a device that had
/// no line gets one without limits.
fn lines_to_write(now: &str, wanted: &str) -> Vec<String> {
    let key =
        |line: &str| line.split_once(' ').map(|(key, _)| key.to_owned()).filter(|key| key.contains(':'));
    let keyed = |text: &str| text.lines().filter_map(key).collect::<Vec<_>>();
    let wanted_keys = keyed(wanted);
    let new = keyed(now).into_iter().filter(|key| !wanted_keys.contains(key));
    let mut lines: Vec<String> =
        new.map(|device| format!("{device} rbps=max wbps=max riops=max wiops=max")).collect();
    lines.extend(wanted.lines().map(str::to_owned));
    // An empty `cpuset.cpus` means the parent's CPUs.
    if lines.is_empty() { vec!["\n".to_owned()] } else { lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_as_they_were_and_nothing_else_is_written() {
        let cgroup = tempfile::tempdir().unwrap();
        let file = |name: &str| cgroup.path().join(name);
        let before =
            [("memory.max", "max\n"), ("cpu.weight", "100\n"), ("pids.max", "64\n"), ("cpuset.cpus", "\n")];
        for (name, text) in before {
            fs::write(file(name), text).unwrap();
        }
        fs::write(file("memory.reclaim"), "").unwrap();
        fs::write(file("memory.peak"), "7\n").unwrap();
        let limits = Limits::read(cgroup.path()).unwrap();
        for (name, text) in [("memory.max", "1048576\n"), ("cpu.weight", "7\n"), ("memory.peak", "9\n")] {
            fs::write(file(name), text).unwrap();
        }
        limits.restore().unwrap();
        for (name, text) in before {
            assert_eq!(fs::read_to_string(file(name)).unwrap().trim_end(), text.trim_end(), "{name}");
        }
        assert_eq!(fs::read_to_string(file("memory.peak")).unwrap(), "9\n");
        assert_eq!(fs::read_to_string(file("memory.reclaim")).unwrap(), "");
        fs::remove_file(file("pids.max")).unwrap();
        assert!(limits.restore().is_err());
    }

    #[test]
    fn a_limit_for_a_device_that_had_none_is_lifted() {
        let now = "254:0 rbps=7 wbps=max riops=max wiops=max\n254:16 rbps=max wbps=9 riops=max wiops=max\n";
        let wanted = "254:16 rbps=1 wbps=max riops=max wiops=max\n";
        let lines = lines_to_write(now, wanted);
        assert_eq!(lines, ["254:0 rbps=max wbps=max riops=max wiops=max", wanted.trim_end()]);
        assert_eq!(lines_to_write("default 7\n", "default 100\n"), ["default 100"]);
    }
}
