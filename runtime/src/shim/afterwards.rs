//! Releasing a container that runs in the background: the shim starts this program again as its last step, with
//! `kiai release`.
//!
//! The shim cannot release the container itself: part of it is the shim's own process, and mounts of the host's mount
//! namespace, which the shim has left.

use std::fs::File;
use std::io;
use std::process::Command;
use std::process::Stdio;

use crate::host::namespaces;

/// The program to start when the shim ends.
pub(super) struct Afterwards {
    words: Vec<String>,
    /// The mount namespace in which this process was started.
    mounts: File,
}

impl Afterwards {
    /// The program with these arguments, if there are any. To be called before the process enters a mount namespace
    /// of its own.
    pub(super) fn of(words: &[String]) -> io::Result<Option<Self>> {
        if words.is_empty() {
            return Ok(None);
        }
        let mounts = File::open("/proc/thread-self/ns/mnt")?;
        Ok(Some(Self { words: words.to_vec(), mounts }))
    }

    /// Starts the program, which outlives this process. The namespace is its standard input; see `enter_mounts`.
    pub(super) fn run(self) {
        let started = std::env::current_exe().and_then(|program| {
            let mut command = Command::new(program);
            command.args(&self.words).stdin(Stdio::from(self.mounts)).stdout(Stdio::null());
            // CNI plugins look at the host's network.
            namespaces::spawn(command.current_dir("/"))
        });
        if let Err(error) = started {
            tracing::error!(%error, "the container cannot be released now; the next `kiai ps` releases it");
        }
    }
}

/// Enters the mount namespace that the shim passed as standard input. The process must have one thread.
pub fn enter_mounts() -> io::Result<()> {
    let kind = rustix::thread::LinkNameSpaceType::Mount;
    Ok(rustix::thread::move_into_link_name_space(rustix::stdio::stdin(), Some(kind))?)
}
