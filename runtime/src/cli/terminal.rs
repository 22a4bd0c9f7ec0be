//! The terminal of this command: in raw mode while a container has it, and restored afterwards.

use std::io::IsTerminal;

use rustix::termios::OptionalActions;
use rustix::termios::Termios;

/// Standard input in raw mode. Dropping it, also by an error or a panic, restores the terminal.
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Switches standard input to raw mode; none if it is not a terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub(super) fn enter() -> std::io::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = rustix::termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A failure is ignored: the terminal is closed.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Columns and rows of the terminal on standard output, or on standard input.
pub(super) fn size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout())
        .or_else(|_| rustix::termios::tcgetwinsize(std::io::stdin()))
        .ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
