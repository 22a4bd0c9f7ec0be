//! `kiai logs`: prints the output of a container in the background.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::anyhow;
use serde::Deserialize;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::follow::Growing;
use crate::cli::state::State;
use crate::cli::task::Task;
use crate::store::Record;
use crate::store::record::Status;
use crate::store::timestamp::Timestamp;

/// Longest line of a log: the shim breaks lines at 64 KiB, and JSON may write a byte as six.
const LONGEST_LINE: usize = 1 << 20;

/// Print the output of a container in the background
#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only so many of the last lines, or all
    #[arg(short = 'n', long, default_value = "all", value_parser = parse_tail)]
    tail: Tail,
    /// Only lines since a time (2026-01-31T12:00:00Z) or so long ago (90s, 10m, 2h)
    #[arg(long, value_parser = parse_moment)]
    since: Option<Timestamp>,
    /// Only lines before a time, or so long ago
    #[arg(long, value_parser = parse_moment)]
    until: Option<Timestamp>,
    /// Print the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Name or id
    container: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    All,
    Lines(u64),
}

fn parse_tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail::All),
        _ => text.parse().map(Tail::Lines).map_err(|_| format!("{text:?} is neither a number nor \"all\"")),
    }
}

/// A time, or a time span before now.
///
/// # Errors
/// The text is neither.
pub(super) fn parse_moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(timestamp) = text.parse() {
        return Ok(timestamp);
    }
    let bad = || format!("{text:?} is neither a time nor a time span such as 90s, 10m or 2h");
    let unit = text.chars().last().ok_or_else(bad)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let amount: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    let span = amount.checked_mul(seconds).ok_or_else(bad)?;
    Ok(Timestamp::before_now(Duration::from_secs(span)))
}

/// A line of the log, as the shim writes it.
#[derive(Deserialize)]
struct Line {
    time: Timestamp,
    stream: String,
    log: String,
}

impl Logs {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let (_, record) = context.store.find(&self.container)?;
        let path = record.log.as_deref().ok_or_else(|| {
            anyhow!(
                "container {} has no log: it runs in the foreground, or with --log-driver none; start it with -d",
                record.name
            )
        })?;
        let result = self.show(&record, path).await;
        match result {
            // A closed pipe ends the output without an error.
            Err(error) if is_broken_pipe(&error) => Ok(0),
            Err(error) => Err(CommandError::own(error)),
            Ok(()) => Ok(0),
        }
    }

    async fn show(&self, record: &Record, path: &Path) -> anyhow::Result<()> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            // The container has written no output yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.follow => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                File::options().append(true).create(true).open(path)?;
                File::open(path)?
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        if let Tail::Lines(lines) = self.tail {
            let start = start_of_last(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        let mut growing = Growing::continued(file, path)?;
        let mut printer = Printer {
            since: self.since,
            until: self.until,
            timestamps: self.timestamps,
            ..Printer::default()
        };
        // Asked before the first read, so that all output is read after the end is known.
        let mut end = Box::pin(end_of(record, self.follow));
        let mut ended = !self.follow;
        loop {
            printer.print_all(&mut growing)?;
            if ended {
                return Ok(());
            }
            tokio::select! {
                changed = growing.changed() => changed?,
                () = &mut end => ended = true,
            }
        }
    }
}

/// Prints the entries of a log as the streams that they came from.
#[derive(Default)]
pub(super) struct Printer {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    timestamps: bool,
    /// Bytes of an entry that is not complete yet.
    rest: Vec<u8>,
    /// The last entry did not end its line, as on a terminal.
    within_line: bool,
}

impl Printer {
    /// Prints all that was appended since the last call.
    ///
    /// # Errors
    /// The log cannot be read or is damaged, or a stream not written.
    pub(super) fn print_all(&mut self, growing: &mut Growing) -> anyhow::Result<()> {
        loop {
            let added = growing.read()?;
            if added.is_empty() {
                return Ok(());
            }
            let mut text = std::mem::take(&mut self.rest);
            text.extend_from_slice(&added);
            self.print_lines(&mut text)?;
            self.rest = text;
        }
    }

    /// Prints the whole lines of `text` and leaves the rest in it.
    fn print_lines(&mut self, text: &mut Vec<u8>) -> anyhow::Result<()> {
        let mut start = 0;
        while let Some(length) = text[start..].iter().position(|byte| *byte == b'\n') {
            self.print_line(&text[start..start + length])?;
            start += length + 1;
        }
        text.drain(..start);
        if text.len() > LONGEST_LINE {
            anyhow::bail!("the log is damaged: a line is longer than {LONGEST_LINE} bytes");
        }
        Ok(())
    }

    fn print_line(&mut self, text: &[u8]) -> anyhow::Result<()> {
        let line: Line = serde_json::from_slice(text).context("the log is damaged")?;
        let early = self.since.is_some_and(|since| line.time < since);
        if early || self.until.is_some_and(|until| line.time > until) {
            return Ok(());
        }
        let begins = !std::mem::replace(&mut self.within_line, !line.log.ends_with('\n'));
        let text = if self.timestamps && begins { format!("{} {}", line.time, line.log) } else { line.log };
        if line.stream == "stderr" {
            io::stderr().write_all(text.as_bytes())?;
        } else {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes())?;
            stdout.flush()?;
        }
        Ok(())
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Returns when the container has ended.
async fn end_of(record: &Record, follow: bool) {
    if !follow || !State::of(record).await.is_running() {
        return;
    }
    let Status::Started { socket, .. } = &record.status else { return };
    // If the shim is gone, the container has ended, too.
    if let Ok(task) = Task::connect(socket, &record.id).await {
        let _ = task.wait("").await;
    }
}

/// Where the last `lines` lines begin. Reads backwards, a block at a time.
fn start_of_last(file: &mut File, lines: u64) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut block = vec![0; 64 << 10];
    let mut seen = 0;
    let length = end;
    while end > 0 {
        let size = end.min(block.len() as u64);
        let start = end - size;
        // At most a block: fits.
        let piece = &mut block[..usize::try_from(size).unwrap_or_default()];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(piece)?;
        for (place, byte) in piece.iter().enumerate().rev() {
            let after = start + place as u64 + 1;
            // The line feed at the end of the file ends the last line and begins none.
            if *byte == b'\n' && after != length {
                seen += 1;
                if seen == lines {
                    return Ok(after);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let table = [
            ("", 3, 0),
            ("a\nb\nc\n", 0, 6),
            ("a\nb\nc\n", 1, 4),
            ("a\nb\nc\n", 2, 2),
            ("a\nb\nc", 1, 4),
            ("a\nb\nc\n", 9, 0),
        ];
        for (text, lines, start) in table {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            assert_eq!(start_of_last(&mut file, lines).unwrap(), start, "{text:?} {lines}");
        }
        let mut file = tempfile::tempfile().unwrap();
        let line = [b"x".repeat(99), b"\n".to_vec()].concat();
        file.write_all(&line.repeat(10_000)).unwrap();
        assert_eq!(start_of_last(&mut file, 9000).unwrap(), 100_000);
    }

    #[test]
    fn spans_and_times_are_read() {
        assert!(parse_moment("2026-01-31").is_ok() && parse_moment("10m").is_ok());
        for text in ["", "m", "10", "10y", "-1s", "99999999999999999999d"] {
            assert!(parse_moment(text).is_err(), "{text}");
        }
        assert_eq!(parse_tail("all"), Ok(Tail::All));
        assert_eq!(parse_tail("7"), Ok(Tail::Lines(7)));
        assert!(parse_tail("-7").is_err());
    }
}
