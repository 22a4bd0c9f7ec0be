//! The progress of a pull: one bar per layer on a terminal, one line per layer elsewhere.

use std::io::IsTerminal;
use std::io::Write;

use indicatif::MultiProgress;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;

/// A receiver of progress. Several tasks call it concurrently.
pub trait Progress: Send + Sync {
    /// A step starts; `bytes` is its size, if known. The returned step receives its progress.
    fn step(&self, what: &str, bytes: Option<u64>) -> Box<dyn Step>;
}

/// A step in progress.
pub trait Step: Send {
    /// `count` more bytes are done.
    fn advance(&mut self, count: u64);
    /// The step has ended; `how` is a short text with the result.
    fn finish(&mut self, how: &str);
}

/// Reports nothing.
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _: &str, _: Option<u64>) -> Box<dyn Step> {
        Box::new(Silent)
    }
}

struct Silent;

impl Step for Silent {
    fn advance(&mut self, _: u64) {}
    fn finish(&mut self, _: &str) {}
}

/// Bars on standard error if it is a terminal, else plain lines.
pub struct Terminal(Option<MultiProgress>);

impl Terminal {
    /// Checks once whether standard error is a terminal.
    pub fn new() -> Self {
        Self(std::io::stderr().is_terminal().then(MultiProgress::new))
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress for Terminal {
    fn step(&self, what: &str, bytes: Option<u64>) -> Box<dyn Step> {
        match &self.0 {
            Some(bars) => {
                let bar = bars.add(bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new));
                let template = "{prefix:20} {bar:30} {bytes:>10}/{total_bytes:<10} {msg}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                bar.set_prefix(what.to_owned());
                Box::new(Bar(bar))
            }
            None => Box::new(Line { what: what.to_owned(), bytes: 0 }),
        }
    }
}

struct Bar(ProgressBar);

impl Step for Bar {
    fn advance(&mut self, count: u64) {
        self.0.inc(count);
    }
    fn finish(&mut self, how: &str) {
        self.0.finish_with_message(how.to_owned());
    }
}

struct Line {
    what: String,
    bytes: u64,
}

impl Step for Line {
    fn advance(&mut self, count: u64) {
        self.bytes += count;
    }
    fn finish(&mut self, how: &str) {
        // A closed standard error must not fail the pull.
        let _ = writeln!(std::io::stderr(), "{}: {how} ({} bytes)", self.what, self.bytes);
    }
}
