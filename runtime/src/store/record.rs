//! The record of a container.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::resolver::DnsOptions;
use crate::store::restart::RestartPolicy;
use crate::store::timestamp::Timestamp;

/// The version of [`Record`] this code reads and writes.
pub const VERSION: u64 = 1;

/// The record of a container, which the first command writes and later commands read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// Version of the format, [`VERSION`].
    pub version: u64,
    /// Id of the container, twelve hex digits.
    pub id: String,
    /// Name of the container, unique in the namespace.
    pub name: String,
    /// The image or root directory.
    pub image: ImageRecord,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Time at which `run` made the container.
    pub created: Timestamp,
    /// Layer directories, topmost first.
    pub layers: Vec<PathBuf>,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// Whether the container is removed at its end.
    pub auto_remove: bool,
    /// Path of the log of its output; `None` for a container in the foreground.
    pub log: Option<PathBuf>,
    /// The signal that asks the process to end.
    pub stop_signal: String,
    /// Published ports, in the form of `-p`.
    pub ports: Vec<String>,
    /// Volumes, as `SOURCE:DESTINATION[:ro]`.
    pub volumes: Vec<String>,
    /// Addresses in the sandbox's network.
    pub addresses: Vec<String>,
    /// State of the container.
    pub status: Status,
    /// What a start needs beside the bundle; `None` in the record of an older version, whose container cannot be
    /// started again.
    #[serde(default)]
    pub startup: Option<StartupRecord>,
    /// Labels of the image and of the user.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Seconds between the stop signal and SIGKILL, if the user chose them.
    #[serde(default)]
    pub stop_timeout: Option<u32>,
    /// Whether it is started again when it ends.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How often it was started again by its policy.
    #[serde(default)]
    pub restarts: u32,
    /// A command has stopped it, so that its policy does not start it again.
    #[serde(default)]
    pub stopped: bool,
    /// Anonymous volumes, which are removed with the container.
    #[serde(default)]
    pub anonymous_volumes: Vec<String>,
}

/// The options of a container that take effect at each start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartupRecord {
    /// Whether the process has a standard input that can be written to.
    pub interactive: bool,
    /// The output is kept nowhere (`--log-driver none`).
    #[serde(default)]
    pub unlogged: bool,
    /// Host name.
    pub hostname: String,
    /// Name of the network; `None` for loopback only.
    pub network: Option<String>,
    /// Ports to publish, in the form of `-p`; one without a port of the host gets a free one at each start.
    pub publish: Vec<String>,
    /// Further names of hosts, as `NAME:ADDRESS`; the address may be `host-gateway`.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Name servers and others that replace the host's.
    #[serde(default)]
    pub dns: DnsOptions,
}

/// The image or root directory of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageRecord {
    /// The user's text: a reference, or the path of a root directory.
    pub name: String,
    /// Digest of the image's manifest; `None` for a root directory.
    pub digest: Option<String>,
}

/// The recorded state of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "state", deny_unknown_fields)]
pub enum Status {
    /// A command is making the container, or was killed.
    Creating,
    /// The container is complete and was never started.
    Created,
    /// A command is starting the container again, or was killed: then the container is as it was before.
    Starting {
        /// The end of its last process; `None` if it was never started.
        previous: Option<ExitRecord>,
    },
    /// The shim was started.
    Started {
        /// The shim.
        shim: ShimProcess,
        /// Address of its socket.
        socket: PathBuf,
        /// Time at which the container's process started.
        at: Timestamp,
    },
    /// The process has ended, and so has the sandbox.
    Exited(ExitRecord),
}

/// The end of a container's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExitRecord {
    /// Exit status, 0 to 255.
    pub code: u32,
    /// Time of the end.
    pub at: Timestamp,
    /// Whether the kernel's OOM killer ended a process of the container; the name is docker's.
    #[serde(rename = "oomKilled")]
    pub out_of_memory: bool,
    /// The reason, if the sandbox ended unexpectedly.
    pub reason: Option<String>,
}

/// The identity of a shim's process, which distinguishes it from a later process with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShimProcess {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (proc(5), field 22 of `stat`).
    pub start_time: u64,
}

impl ShimProcess {
    /// The identity of the process that has this id now, if one has.
    pub fn of_pid(pid: u32) -> Option<Self> {
        let (state, start_time) =
            state_and_start(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        // A zombie has no memory, mounts or sockets any more.
        (state != 'Z' && state != 'X').then_some(Self { pid, start_time })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of_pid(self.pid) == Some(self)
    }
}

/// State and start time from the text of `/proc/PID/stat`. The command in parentheses may contain any character, so
/// fields are counted from the last parenthesis.
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
