//! Who gives back what a container had when nobody waits for its end: this program once more, started by the shim
//! as its last act.
//!
//! The shim cannot do it itself: what is to be given back is the shim's own process, and things of the host's mount
//! namespace, which it has left.

use std::fs::File;
use std::io;
use std::process::Command;
use std::process::Stdio;

/// What to run, and where.
pub(super) struct Afterwards {
    words: Vec<String>,
    /// The mount namespace this process was started in.
    mounts: File,
}

impl Afterwards {
    /// For `words`, if there are any. To be called before the process enters a mount namespace of its own.
    pub(super) fn of(words: &[String]) -> io::Result<Option<Self>> {
        if words.is_empty() {
            return Ok(None);
        }
        let mounts = File::open("/proc/thread-self/ns/mnt")?;
        Ok(Some(Self { words: words.to_vec(), mounts }))
    }

    /// Starts it and lets it go: it outlives us. The namespace is its standard input; see `enter_mounts`.
    pub(super) fn run(self) {
        let started = std::env::current_exe().and_then(|program| {
            let mut command = Command::new(program);
            command.args(&self.words).stdin(Stdio::from(self.mounts)).stdout(Stdio::null());
            command.current_dir("/").spawn()
        });
        if let Err(error) = started {
            tracing::error!(%error, "nobody gives back what the container had; `kiai ps` will");
        }
    }
}

/// Returns to the mount namespace that the shim left as standard input. The process must have one thread.
pub fn enter_mounts() -> io::Result<()> {
    let kind = rustix::thread::LinkNameSpaceType::Mount;
    Ok(rustix::thread::move_into_link_name_space(rustix::stdio::stdin(), Some(kind))?)
}
