//! What is written down of a container.

use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::store::timestamp::Timestamp;

/// The version of [`Record`] this code reads and writes.
pub const VERSION: u64 = 1;

/// A container, as the commands that come after the one that made it know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u64,
    /// Twelve hex digits.
    pub id: String,
    /// Unique in the namespace.
    pub name: String,
    /// What it was made from.
    pub image: ImageRecord,
    /// Program and arguments.
    pub command: Vec<String>,
    /// When `run` made it.
    pub created: Timestamp,
    /// Layer directories, topmost first.
    pub layers: Vec<PathBuf>,
    /// Has a terminal.
    pub terminal: bool,
    /// Removed when it ends.
    pub auto_remove: bool,
    /// Where its output is recorded; none for a container in the foreground.
    pub log: Option<PathBuf>,
    /// What asks it to end.
    pub stop_signal: String,
    /// Ports of the host that lead to it, as `-p` words.
    pub ports: Vec<String>,
    /// Volumes, as `SOURCE:DESTINATION[:ro]`.
    pub volumes: Vec<String>,
    /// Addresses in the sandbox's network.
    pub addresses: Vec<String>,
    /// Where it stands.
    pub status: Status,
}

/// What a container was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageRecord {
    /// As the user wrote it: a reference, or the path of a root directory.
    pub name: String,
    /// Of the image's manifest; none for a root directory.
    pub digest: Option<String>,
}

/// Where a container stands, as last written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "state", deny_unknown_fields)]
pub enum Status {
    /// Its maker is at work, or died.
    Creating,
    /// Its shim was started.
    Started {
        /// The shim.
        shim: ShimProcess,
        /// Where it listens.
        socket: PathBuf,
        /// When the container's process started.
        at: Timestamp,
    },
    /// It has ended and its sandbox is gone.
    Exited(ExitRecord),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExitRecord {
    /// 0 to 255.
    pub code: u32,
    /// When.
    pub at: Timestamp,
    /// The kernel's OOM killer struck; docker's name for it.
    #[serde(rename = "oomKilled")]
    pub out_of_memory: bool,
    /// What else there is to say: the sandbox's own end.
    pub reason: Option<String>,
}

/// A shim, told apart from a later process that got the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShimProcess {
    /// Process id.
    pub pid: u32,
    /// Clock ticks from boot to its start (proc(5), field 22 of `stat`).
    pub start_time: u64,
}

impl ShimProcess {
    /// The process that has this id now, if there is one.
    pub fn of_pid(pid: u32) -> Option<Self> {
        let (state, start_time) =
            state_and_start(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        // A zombie holds nothing any more: its memory, mounts and sockets are gone.
        (state != 'Z' && state != 'X').then_some(Self { pid, start_time })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of_pid(self.pid) == Some(self)
    }
}

/// State and start time from the text of `/proc/PID/stat`. The command in parentheses may hold anything, so
/// counting starts after the last one.
fn state_and_start(stat: &str) -> Option<(char, u64)> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_its_successor() {
        let own = ShimProcess::of_pid(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!ShimProcess { start_time: own.start_time + 1, ..own }.is_alive());
    }

    #[test]
    fn a_command_with_parentheses_does_not_confuse() {
        let stat = "7 (a) R (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(state_and_start(stat), Some(('S', 4711)));
        assert_eq!(state_and_start("7 (a"), None);
        assert_eq!(state_and_start("7 (a) S 1"), None);
    }
}
