//! One call of one CNI plugin (CNI specification 1.0.0, section 2 "Execution Protocol").

use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::Value;

/// A call of a plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The plugin is not installed.
    #[error(
        "the CNI plugin {name:?} is in none of {folders}; install containernetworking-plugins, name its \
         folder in CNI_PATH, or run with --network none"
    )]
    Missing {
        /// The plugin.
        name: String,
        /// The folders in which it was looked for.
        folders: String,
    },
    /// The plugin's program cannot be run.
    #[error("cannot run the CNI plugin {}", path.display())]
    Spawn {
        /// The plugin.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The plugin reported an error.
    #[error("CNI plugin {name} failed: {message}")]
    Refused {
        /// The plugin.
        name: String,
        /// The plugin's message.
        message: String,
    },
    /// The answer of the plugin is not JSON.
    #[error("the answer of CNI plugin {name} is not JSON")]
    Answer {
        /// The plugin.
        name: String,
        /// Position and reason.
        #[source]
        source: serde_json::Error,
    },
}

/// The command of a call, `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
}

/// The parameters of one call.
pub(super) struct Call<'a> {
    pub(super) command: Command,
    pub(super) configuration: Value,
    pub(super) plugin_path: &'a [PathBuf],
    pub(super) container: &'a str,
    /// Path of the network namespace. `None` if it no longer exists, which DEL must accept.
    pub(super) namespace: Option<&'a PathBuf>,
    pub(super) interface: &'a str,
}

/// The error object a plugin prints (section 5, "Error").
#[derive(Deserialize)]
struct Refusal {
    msg: String,
    #[serde(default)]
    details: String,
}

/// Finds a plugin's program.
pub(super) fn find(folders: &[PathBuf], name: &str) -> Result<PathBuf, PluginError> {
    folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        PluginError::Missing { name: name.to_owned(), folders: folders.join(", ") }
    })
}

/// Calls a plugin and returns its answer; `null` if the answer is empty.
pub(super) fn call(call: &Call<'_>) -> Result<Value, PluginError> {
    let name = call.configuration["type"].as_str().unwrap_or_default().to_owned();
    let path = find(call.plugin_path, &name)?;
    let output = execute(&path, call).map_err(|source| PluginError::Spawn { path, source })?;
    let answer = trim(&output.stdout);
    if !output.status.success() {
        let message = refusal(answer, &output.stderr, &output.status.to_string());
        return Err(PluginError::Refused { name, message });
    }
    if answer.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(answer).map_err(|source| PluginError::Answer { name, source })
}

fn execute(path: &Path, call: &Call<'_>) -> io::Result<std::process::Output> {
    let folders = std::env::join_paths(call.plugin_path).map_err(io::Error::other)?;
    let command = match call.command {
        Command::Add => "ADD",
        Command::Del => "DEL",
    };
    let mut child = std::process::Command::new(path)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", call.container)
        .env("CNI_NETNS", call.namespace.map_or(Path::new(""), PathBuf::as_path))
        .env("CNI_IFNAME", call.interface)
        .env("CNI_PATH", folders)
        .env_remove("CNI_ARGS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let configuration = call.configuration.to_string();
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("no pipe to the plugin"))?;
    // The configuration is much smaller than the pipe's buffer, so this write does not block. A plugin that
    // exited without reading reports the reason in its output.
    match stdin.write_all(configuration.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => drop(stdin),
    }
    child.wait_with_output()
}

fn trim(answer: &[u8]) -> &[u8] {
    answer.trim_ascii()
}

/// The plugin's message on one line: its error object, else its standard error, else its exit status.
fn refusal(answer: &[u8], stderr: &[u8], status: &str) -> String {
    let text = match serde_json::from_slice::<Refusal>(answer) {
        Ok(Refusal { msg, details }) if details.is_empty() => msg,
        Ok(Refusal { msg, details }) => format!("{msg}: {details}"),
        Err(_) => String::from_utf8_lossy(if answer.is_empty() { stderr } else { answer }).into_owned(),
    };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() { status.to_owned() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line_in_the_plugins_words() {
        let object = br#"{ "cniVersion": "1.0.0", "code": 11, "msg": "no range", "details": "full\nup" }"#;
        assert_eq!(refusal(object, b"noise", "exit status: 1"), "no range: full up");
        assert_eq!(refusal(b"", b"iptables:\n not found", "exit status: 1"), "iptables: not found");
        assert_eq!(refusal(b"", b"", "signal: 9"), "signal: 9");
    }
}
