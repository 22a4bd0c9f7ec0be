//! A log of JSON lines: {"time": RFC 3339 with nanoseconds, "stream": "stdout"|"stderr", "log": text}.
//!
//! A line of output is one entry, its newline in the text; a longer one is cut. Several streams may append to
//! one file: an entry is one write.

use std::io;

use serde::Serialize;
use tokio::io::AsyncWriteExt;

use crate::store::timestamp::Timestamp;

/// Bytes of output in one entry, at most.
const MOST_ENTRY_BYTES: usize = 16 * 1024;

#[derive(Serialize)]
struct Entry<'a> {
    time: &'a str,
    stream: &'static str,
    log: &'a str,
}

/// One stream's end of the log.
pub(super) struct LogSink {
    file: tokio::fs::File,
    stream: &'static str,
    /// A terminal's output is logged as it comes: a prompt has no end of line.
    terminal: bool,
    /// An unfinished line, or a cut character.
    pending: Vec<u8>,
}

impl LogSink {
    pub(super) fn new(file: tokio::fs::File, stream: &'static str, terminal: bool) -> Self {
        Self { file, stream, terminal, pending: Vec::new() }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        let whole = if self.terminal { character_boundary } else { complete };
        let complete = whole(&self.pending);
        if complete == 0 {
            return Ok(());
        }
        let rest = self.pending.split_off(complete);
        let lines = std::mem::replace(&mut self.pending, rest);
        self.append(&lines).await
    }

    pub(super) async fn finish(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.append(&rest).await?;
        }
        self.file.flush().await
    }

    async fn append(&mut self, output: &[u8]) -> io::Result<()> {
        let time = Timestamp::now().to_string();
        let mut text = Vec::with_capacity(output.len() + 128);
        for entry in entries(output) {
            let log = String::from_utf8_lossy(entry);
            serde_json::to_writer(&mut text, &Entry { time: &time, stream: self.stream, log: &log })?;
            text.push(b'\n');
        }
        self.file.write_all(&text).await?;
        // tokio's files write behind: a reader of the log wants it now.
        self.file.flush().await
    }
}

/// How much of the output can be logged: whole lines, or all but a cut character when a line has grown too long.
fn complete(output: &[u8]) -> usize {
    match output.iter().rposition(|&byte| byte == b'\n') {
        Some(newline) => newline + 1,
        None if output.len() >= MOST_ENTRY_BYTES => character_boundary(output),
        None => 0,
    }
}

fn entries(output: &[u8]) -> impl Iterator<Item = &[u8]> {
    output.split_inclusive(|&byte| byte == b'\n').flat_map(|line| {
        let mut rest = line;
        std::iter::from_fn(move || {
            let length = match rest.len() {
                0 => return None,
                short if short <= MOST_ENTRY_BYTES => short,
                _ => character_boundary(&rest[..MOST_ENTRY_BYTES]),
            };
            let (entry, after) = rest.split_at(length);
            rest = after;
            Some(entry)
        })
    })
}

/// The length without a UTF-8 character that is cut off at the end; the whole length when nothing is.
fn character_boundary(bytes: &[u8]) -> usize {
    let start = bytes.len().saturating_sub(3);
    for at in (start..bytes.len()).rev() {
        let needed = match bytes[at] {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            0x80..=0xbf => continue,
            _ => 1,
        };
        return if at + needed > bytes.len() { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn lines_become_entries_and_the_rest_follows_at_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || tokio::fs::File::from(file.as_file().try_clone().unwrap());
        let mut log = LogSink::new(open(), "stderr", false);
        log.write(b"one\ntw").await.unwrap();
        log.write(b"o\nthree").await.unwrap();
        log.finish().await.unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let entries: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let logs: Vec<&str> = entries.iter().map(|entry| entry["log"].as_str().unwrap()).collect();
        assert_eq!(logs, ["one\n", "two\n", "three"]);
        assert!(entries.iter().all(|entry| entry["stream"] == "stderr"));
    }

    #[tokio::test]
    async fn a_prompt_of_a_terminal_is_logged_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = LogSink::new(tokio::fs::File::from(file.reopen().unwrap()), "stdout", true);
        let logs = || -> Vec<String> {
            let text = std::fs::read_to_string(file.path()).unwrap();
            let entry = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
            text.lines().map(|line| entry(line)["log"].as_str().unwrap().to_owned()).collect()
        };
        log.write(b"/ # ").await.unwrap();
        assert_eq!(logs(), ["/ # "]);
        log.write(&"é".as_bytes()[..1]).await.unwrap();
        assert_eq!(logs().len(), 1, "half a character waits for the other half");
        log.write(&"é".as_bytes()[1..]).await.unwrap();
        assert_eq!(logs(), ["/ # ", "é"]);
    }

    #[test]
    fn a_character_is_not_cut() {
        let mut long = vec![b'x'; MOST_ENTRY_BYTES - 1];
        long.extend("é".repeat(10).bytes());
        let entries: Vec<&[u8]> = entries(&long).collect();
        assert!(entries.iter().all(|entry| std::str::from_utf8(entry).is_ok()));
        assert_eq!(complete("xé".as_bytes()), 0);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_whatever_the_bytes(output in prop::collection::vec(any::<u8>(), 0..40_000)) {
            let joined: Vec<u8> = entries(&output).flatten().copied().collect();
            prop_assert_eq!(joined, output);
        }
    }
}
