//! Debian's `docker-registry` on loopback, serving a folder.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Whether images can be pushed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Pulls only; the folder may be on a read-only disk.
    Read,
    /// Pushes as well.
    Write,
}

/// A registry without TLS, for as long as this lives.
pub(crate) struct Registry {
    process: Child,
    /// `127.0.0.1:PORT`, a port that was free.
    pub(crate) address: String,
    /// Kept open: the registry would die of writing to a closed pipe.
    _log: BufReader<ChildStderr>,
}

impl Registry {
    /// Starts a registry that keeps its content in `storage`, and waits until it says that it listens.
    pub(crate) fn start(storage: &Path, access: Access) -> Result<Self> {
        let config = tempfile::NamedTempFile::new()?;
        std::fs::write(
            config.path(),
            format!(
                "version: 0.1\nlog: {{level: info, formatter: json, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}, maintenance: {{readonly: {{enabled: {}}}}}}}\n\
                 http: {{addr: \"127.0.0.1:0\"}}\n",
                storage.display(),
                access == Access::Read,
            ),
        )?;
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(config.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("docker-registry")?;
        let mut log = BufReader::new(process.stderr.take().context("the registry's log")?);
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if log.read_line(&mut line)? == 0 {
                bail!("docker-registry does not start:\n{said}");
            }
            if let Some(address) = listening_address(&line) {
                return Ok(Self { process, address, _log: log });
            }
            said += &line;
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Killing fails only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The address in the registry's announcement that it is ready.
fn listening_address(line: &str) -> Option<String> {
    let (_, after) = line.split_once("listening on ")?;
    let address: String =
        after.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
    Some(address).filter(|address| address.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_address_is_read_from_its_log() {
        let line = r#"{"level":"info","msg":"listening on 127.0.0.1:44321","version":"2.8"}"#;
        assert_eq!(listening_address(line).as_deref(), Some("127.0.0.1:44321"));
        assert_eq!(listening_address(r#"{"msg":"using inmemory cache"}"#), None);
    }
}
