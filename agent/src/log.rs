//! The agent's log: lines into the kernel's, where the host reads them from the console.
//!
//! The kernel's own limits on `/dev/kmsg` (rate and length of a line) bound what a noisy guest can cause.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Longest line the kernel takes is a little more than 1,000 bytes.
const LONGEST_LINE: usize = 960;

/// The log's file, `/dev/kmsg` or whatever a test prefers.
struct Kmsg(File);

/// One line in the making; written whole, for each write is one record.
struct Line<'a> {
    file: &'a File,
    /// syslog priority, as in `<4>`.
    priority: u8,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let mut record = format!("<{}>kiai-agent: ", self.priority).into_bytes();
        record.extend_from_slice(text.trim_ascii_end());
        record.truncate(LONGEST_LINE);
        record.push(b'\n');
        // A log that cannot be written must not stop anything.
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

/// Sends everything of `level` and above to `file`. To be called once.
///
/// Libraries are heard from DEBUG on. `reasons`, of a helper, takes the errors libcontainer logs: it logs at
/// every level an error passes, and returns only the last and vaguest.
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
    // A second subscriber in one process means a test harness, which keeps its own.
    let _ = tracing_subscriber::registry().with(lines).with(reasons).try_init();
}
