//! A process in the foreground: its streams, its terminal and forwarded signals, until it ends.

use std::io;
use std::io::Write;

use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;

use crate::cli::follow::Growing;
use crate::cli::signals;
use crate::cli::signals::Forwarded;
use crate::cli::streams::Flow;
use crate::cli::streams::StreamEnd;
use crate::cli::task::ShimError;
use crate::cli::task::Task;
use crate::cli::task::TaskExit;
use crate::cli::terminal;

/// Exit status of a process whose output is no longer read: 128 + SIGPIPE, as in a shell.
const BROKEN_PIPE: u32 = 141;

/// SIGWINCH.
const WINDOW_CHANGED: u32 = 28;

/// A process in the foreground.
pub(super) struct Session<'a> {
    pub(super) task: &'a Task,
    /// Empty for the container's own process.
    pub(super) exec_id: &'a str,
    pub(super) terminal: bool,
    /// The guest's console, to be shown on standard error.
    pub(super) console: Option<Growing>,
}

impl Session<'_> {
    /// Serves the started process until it has ended and its output is written.
    ///
    /// # Errors
    /// The connection to the shim closed, or standard output cannot be written.
    pub(super) async fn attend(
        mut self,
        flow: Flow,
        signals: &mut Forwarded,
    ) -> Result<TaskExit, SessionError> {
        let Flow { mut stdin, mut stdout, mut stderr } = flow;
        let mut window = tokio::signal::unix::signal(SignalKind::window_change())?;
        if self.terminal {
            self.resize().await;
        }
        let task = self.task;
        let wait = task.wait(self.exec_id);
        tokio::pin!(wait);
        let mut reader_gone = false;
        let mut ended = loop {
            tokio::select! {
                ended = &mut wait => break ended?,
                number = signals.next() => self.forward(number).await,
                _ = window.recv(), if self.terminal => self.resize().await,
                ending = next(&mut stdin) => self.input_ended(ending).await,
                ending = next(&mut stdout) => reader_gone |= self.output_ended(ending).await?,
                ending = next(&mut stderr) => reader_gone |= self.output_ended(ending).await?,
                changed = console_changed(&self.console) => {
                    changed?;
                    self.show_console()?;
                }
            }
        };
        if !self.exec_id.is_empty() {
            // Closes the fifos, which a child of the process may keep open in the container. An error means that the
            // process was deleted already, with its container.
            let _ = task.delete(self.exec_id).await;
        }
        // The last output of the process may still be in the fifos.
        for output in [&mut stdout, &mut stderr] {
            while output.is_some() {
                reader_gone |= matches!(next(output).await, StreamEnd::ReaderGone);
            }
        }
        self.show_console()?;
        if reader_gone {
            ended.status = BROKEN_PIPE;
        }
        Ok(ended)
    }

    async fn forward(&self, number: u32) {
        if number == WINDOW_CHANGED && self.terminal {
            return;
        }
        // The process may have ended meanwhile.
        if let Err(error) = self.task.kill(self.exec_id, number, false).await
            && !error.is_not_found()
        {
            eprintln!("kiai: signal {number}: {error}");
        }
    }

    async fn resize(&self) {
        if let Some((columns, rows)) = terminal::size() {
            // A failure is ignored: the next change of size sets it again.
            let _ = self.task.resize(self.exec_id, columns, rows).await;
        }
    }

    async fn input_ended(&self, ending: StreamEnd) {
        if let StreamEnd::Failed(error) = ending {
            eprintln!("kiai: cannot read standard input: {error}");
        }
        // The process may have ended meanwhile.
        let _ = self.task.close_stdin(self.exec_id).await;
    }

    /// Ends a process whose output is no longer read, as in a pipeline; returns whether that was the case.
    async fn output_ended(&self, ending: StreamEnd) -> Result<bool, SessionError> {
        match ending {
            // Only an input is detached from.
            StreamEnd::EndOfFile | StreamEnd::Detached => Ok(false),
            StreamEnd::ReaderGone => {
                self.forward(signals::KILL).await;
                Ok(true)
            }
            StreamEnd::Failed(error) => {
                self.forward(signals::KILL).await;
                Err(SessionError::Output(error))
            }
        }
    }

    fn show_console(&mut self) -> io::Result<()> {
        let Some(console) = &mut self.console else { return Ok(()) };
        loop {
            let text = console.read()?;
            if text.is_empty() {
                return Ok(());
            }
            // In raw mode a line feed alone does not go back to the first column.
            let text = if self.terminal { with_carriage_returns(&text) } else { text };
            io::stderr().write_all(&text)?;
        }
    }
}

fn with_carriage_returns(text: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len() + 64);
    for (index, byte) in text.iter().enumerate() {
        if *byte == b'\n' && (index == 0 || text[index - 1] != b'\r') {
            result.push(b'\r');
        }
        result.push(*byte);
    }
    result
}

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// A call to the shim failed.
    #[error(transparent)]
    Task(#[from] ShimError),
    /// Standard output or error cannot be written.
    #[error("cannot copy the container's output")]
    Output(#[source] io::Error),
    /// A signal or the console cannot be handled.
    #[error("cannot forward a signal or show the console")]
    Attend(#[from] io::Error),
}

/// Waits for the end of a stream, once; after that it never returns.
pub(super) async fn next(stream: &mut Option<oneshot::Receiver<StreamEnd>>) -> StreamEnd {
    match stream {
        Some(receiver) => {
            // The thread panicked, which it has printed itself.
            let ending = receiver.await.unwrap_or(StreamEnd::EndOfFile);
            *stream = None;
            ending
        }
        None => std::future::pending().await,
    }
}

async fn console_changed(console: &Option<Growing>) -> io::Result<()> {
    match console {
        Some(console) => console.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_feeds_return_the_carriage_once() {
        assert_eq!(with_carriage_returns(b"a\nb\r\n\n"), b"a\r\nb\r\n\r\n");
    }
}
