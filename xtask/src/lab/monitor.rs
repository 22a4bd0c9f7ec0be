//! QEMU's monitor (QMP), for a lab that says nothing any more: where its processors are and which interrupts wait.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take for an answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Registers of every processor, and what its interrupt controller has to deliver.
const QUESTIONS: [&str; 2] = ["info registers -a", "info lapic"];

/// One question after the other with its answer; then the lab's kernel gets an interrupt that it cannot mask, of which
/// it panics and says on its console what it was doing.
pub(super) fn interrogate(monitor: &UnixStream) -> String {
    let mut said = String::new();
    if let Err(error) = ask_all(monitor, &mut said) {
        said += &format!("QEMU's monitor: {error:#}\n");
    }
    said
}

fn ask_all(monitor: &UnixStream, said: &mut String) -> Result<()> {
    monitor.set_read_timeout(Some(LIMIT))?;
    let mut lines = BufReader::new(monitor).lines();
    execute(monitor, &mut lines, &json!({ "execute": "qmp_capabilities" }))?;
    for question in QUESTIONS {
        let arguments = json!({ "command-line": question });
        let command = json!({ "execute": "human-monitor-command", "arguments": arguments });
        let answer = execute(monitor, &mut lines, &command)?;
        *said += &format!("{question}\n{}\n", answer.as_str().unwrap_or_default().replace('\r', ""));
    }
    execute(monitor, &mut lines, &json!({ "execute": "inject-nmi" }))?;
    Ok(())
}

/// The answer to one command. QEMU's own events are skipped.
fn execute(
    mut monitor: &UnixStream,
    lines: &mut impl Iterator<Item = std::io::Result<String>>,
    command: &Value,
) -> Result<Value> {
    writeln!(monitor, "{command}").context("write")?;
    for line in lines {
        let mut message: Value = serde_json::from_str(&line.context("read")?).context("a line of it")?;
        if let Some(error) = message.get("error") {
            bail!("{command}: {error}");
        }
        if message.get("return").is_some() {
            return Ok(message["return"].take());
        }
    }
    bail!("the monitor has closed the connection")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_events_and_errors_named() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let replies = [
            r#"{"QMP": {"version": {}}}"#,
            r#"{"return": {}}"#,
            r#"{"event": "RTC_CHANGE"}"#,
            r#"{"return": "RIP=1\r\n"}"#,
            r#"{"error": {"desc": "no such command"}}"#,
        ];
        for reply in replies {
            writeln!(&theirs, "{reply}").unwrap();
        }
        let said = interrogate(&ours);
        assert!(said.starts_with("info registers -a\nRIP=1\n"), "{said}");
        assert!(said.contains("info lapic") && said.contains("no such command"), "{said}");
    }
}
