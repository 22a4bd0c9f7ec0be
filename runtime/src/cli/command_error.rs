//! The error of a verb: a chain of causes, with an exit status by docker's conventions.

use std::io::Write;

/// Exit status if kiai failed, not the container.
pub(super) const OWN: u8 = 125;
/// Exit status if the container's program exists but cannot be run.
const CANNOT_INVOKE: u8 = 126;
/// Exit status if the container's program does not exist.
const NOT_FOUND: u8 = 127;

/// Why a verb failed.
#[derive(Debug)]
pub(super) struct CommandError {
    status: u8,
    error: anyhow::Error,
    /// Lines printed after the message: the last ones of the guest's console.
    detail: Option<String>,
}

impl CommandError {
    /// An error of kiai itself.
    pub(super) fn own(error: impl Into<anyhow::Error>) -> Self {
        Self { status: OWN, error: error.into(), detail: None }
    }

    /// The error of a start; its message determines the exit status.
    pub(super) fn of_start(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        Self { status: status_of_start(&format!("{error:#}")), error, detail: None }
    }

    /// Changes the exit status.
    pub(super) fn with_status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    /// Adds lines printed after the message.
    pub(super) fn with_detail(mut self, detail: Option<String>) -> Self {
        self.detail = detail.or(self.detail);
        self
    }

    /// The error, with the lines printed after the message as its last cause.
    pub(super) fn into_error(self) -> anyhow::Error {
        match self.detail {
            Some(detail) => self.error.context(detail.trim_end().to_owned()),
            None => self.error,
        }
    }

    /// The exit status.
    pub(super) fn status(&self) -> u8 {
        self.status
    }

    /// Prints the one line, and the detail below it.
    pub(super) fn print(&self) {
        let mut stderr = std::io::stderr().lock();
        // A failure is ignored: standard error is closed.
        let _ = writeln!(stderr, "kiai: {}", one_line(&self.error));
        if let Some(detail) = &self.detail {
            let _ = writeln!(stderr, "{}", detail.trim_end());
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for CommandError {
    fn from(error: E) -> Self {
        Self::own(error)
    }
}

/// The chain of causes on one line.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // A cause that its effect contains is not repeated.
        if !parts.last().is_some_and(|last| last.ends_with(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn status_of_start(text: &str) -> u8 {
    let lower = text.to_lowercase();
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| lower.contains(phrase));
    if says(&["executable not found", "executable file not found", "no such executable"]) {
        NOT_FOUND
    } else if says(&["not executable", "exec format error", "cannot execute", "executable is a directory"]) {
        CANNOT_INVOKE
    } else {
        OWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_whether_kiai_or_the_program_failed() {
        let table = [
            ("create container: executable not found: nope", NOT_FOUND),
            ("exec: \"x\": executable file not found in $PATH", NOT_FOUND),
            ("start: /etc/passwd is not executable", CANNOT_INVOKE),
            ("start: Exec format error", CANNOT_INVOKE),
            ("kernel image: no such file or directory", OWN),
        ];
        for (text, status) in table {
            assert_eq!(status_of_start(text), status, "{text}");
        }
    }

    #[test]
    fn causes_are_joined_on_one_line() {
        let error = anyhow::anyhow!("no such\nfile").context("cannot read /x").context("run");
        assert_eq!(one_line(&error), "run: cannot read /x: no such file");
        let error = anyhow::anyhow!("deep").context("outer: deep");
        assert_eq!(one_line(&error), "outer: deep");
    }
}
