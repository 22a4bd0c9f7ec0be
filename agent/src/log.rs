//! The agent's log: lines in the kernel's log, which the host reads from the console.
//!
//! The kernel limits the rate and the length of lines in `/dev/kmsg`, and so bounds a noisy guest's log.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// The longest line that is written; the kernel's limit is a little more than 1,000 bytes.
const LONGEST_LINE: usize = 960;

/// The log's file: `/dev/kmsg`, or a test's own.
struct Kmsg(File);

/// One line, written by one write, because each write is a record.
struct Line<'a> {
    file: &'a File,
    /// The syslog priority, as in `<4>`.
    priority: u8,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let mut record = format!("<{}>kiai-agent: ", self.priority).into_bytes();
        record.extend_from_slice(text.trim_ascii_end());
        record.truncate(LONGEST_LINE);
        record.push(b'\n');
        // A log that cannot be written must not stop the agent.
        let _ = (&mut self.file).write(&record);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Kmsg {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { file: &self.0, priority: 6 }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        let priority = match *metadata.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        Line { file: &self.0, priority }
    }
}

/// Writes messages of `level` and above to `file`. To be called once.
///
/// Messages of libraries are written from DEBUG on. A helper's `reasons` takes the errors that libcontainer logs: it
/// logs at every step an error passes through, and returns only the last and least specific.
pub fn start(file: File, level: Level, reasons: Option<File>) {
    let others = if level >= Level::DEBUG { LevelFilter::from_level(level) } else { LevelFilter::OFF };
    let targets = Targets::new().with_default(others).with_target("kiai_agent", level);
    let lines = fmt::layer().with_ansi(false).with_target(false).with_level(false).without_time();
    let lines = lines.with_writer(Kmsg(file)).with_filter(targets);
    let errors = Targets::new().with_target("libcontainer", Level::ERROR);
    let reasons = reasons.map(|file| {
        let lines = fmt::layer().with_ansi(false).with_target(false).with_level(false).without_time();
        lines.with_writer(Arc::new(file)).with_filter(errors)
    });
    // Fails if there is a subscriber already, which is a test harness's own.
    let _ = tracing_subscriber::registry().with(lines).with(reasons).try_init();
}
