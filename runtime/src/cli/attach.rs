//! `kiai attach` and `kiai start -a`: shows the output of a container in the background, and gives it input.
//!
//! The output is read from the container's log, so that any number of commands can be attached at once.

use std::fs::File;
use std::io;
use std::io::Seek;

use anyhow::Context as _;
use anyhow::anyhow;
use anyhow::bail;
use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::exec::serving_task;
use crate::cli::follow::Growing;
use crate::cli::logs::Printer;
use crate::cli::session::next;
use crate::cli::signals::Forwarded;
use crate::cli::state::State;
use crate::cli::stop;
use crate::cli::streams;
use crate::cli::streams::StreamEnd;
use crate::cli::task::ShimError;
use crate::cli::task::Task;
use crate::cli::task::TaskExit;
use crate::cli::terminal;
use crate::cli::terminal::RawMode;
use crate::store::ContainerDirectory;
use crate::store::Record;
use crate::store::record::Status;

/// Attach to a container in the background: its output, and its input if it has one (-i)
#[derive(Debug, clap::Args)]
pub(super) struct Attach {
    /// Give it no input
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    options: AttachOptions,
    /// Name or id
    container: String,
}

/// Options of every command that attaches.
#[derive(Debug, clap::Args)]
pub(super) struct AttachOptions {
    /// Keys that detach from a terminal and leave the container running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = parse_keys)]
    detach_keys: Keys,
    /// Pass signals on to the container
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
}

/// The bytes that a terminal sends for keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys(Vec<u8>);

fn parse_keys(text: &str) -> Result<Keys, String> {
    let bad =
        || format!("{text:?} is not a list of keys; write letters and ctrl-LETTER, with commas between");
    let key = |word: &str| -> Option<u8> {
        match word.as_bytes() {
            [letter] if letter.is_ascii_graphic() => Some(*letter),
            _ => {
                let [letter] = word.strip_prefix("ctrl-")?.as_bytes() else { return None };
                // A terminal sends the letter without its upper bits.
                matches!(letter, b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')
                    .then(|| letter & 0x1f)
            }
        }
    };
    if text.is_empty() {
        return Ok(Keys(Vec::new()));
    }
    text.split(',').map(key).collect::<Option<Vec<u8>>>().map(Keys).ok_or_else(bad)
}

/// SIGWINCH.
const WINDOW_CHANGED: u32 = 28;

/// A container to whose streams this command is attached.
pub(super) struct Attachment<'a> {
    pub(super) container: &'a ContainerDirectory,
    pub(super) record: &'a Record,
    /// The log, at the position from which it is shown.
    pub(super) log: File,
    pub(super) stdin: bool,
    /// The end of this command's input is that of the container's.
    pub(super) close_stdin: bool,
    pub(super) options: &'a AttachOptions,
}

/// Opens the log of a container at its end; it is made if the container has written nothing yet.
///
/// # Errors
/// The container runs in the foreground of another command, or the log cannot be opened.
pub(super) fn log_at_end(container: &ContainerDirectory, record: &Record) -> anyhow::Result<File> {
    let foreground = matches!(record.status, Status::Started { .. }) && record.log.is_none();
    if foreground || record.startup.as_ref().is_some_and(|startup| startup.unlogged) {
        bail!(
            "container {} cannot be attached to: it runs in the foreground of another command, or without a log",
            record.name
        );
    }
    let path = container.log_file();
    let file = File::options().read(true).append(true).create(true).open(&path);
    let mut file = file.with_context(|| format!("cannot open {}", path.display()))?;
    file.seek(io::SeekFrom::End(0))?;
    Ok(file)
}

impl Attach {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let (container, record) = context.store.find(&self.container)?;
        let (task, state) = serving_task(&record).await?;
        if let State::Paused { .. } = state {
            let name = record.name;
            return Err(CommandError::own(anyhow!("container {name} is paused: kiai unpause {name}")));
        }
        let signals = Forwarded::take_over().context("cannot take over signals")?;
        let interactive = record.startup.as_ref().is_some_and(|startup| startup.interactive);
        let attachment = Attachment {
            container: &container,
            record: &record,
            log: log_at_end(&container, &record)?,
            stdin: interactive && !self.no_stdin,
            close_stdin: false,
            options: &self.options,
        };
        attachment.attend(context, &task, signals).await
    }
}

impl Attachment<'_> {
    /// Shows the output until the container ends or the user detaches; returns the exit status.
    ///
    /// # Errors
    /// A stream cannot be read or written, or the shim is lost.
    pub(super) async fn attend(
        self,
        context: &Context,
        task: &Task,
        signals: Forwarded,
    ) -> Result<u8, CommandError> {
        let (container, record) = (self.container.clone(), self.record.clone());
        let raw = if record.terminal && self.stdin { RawMode::enter() } else { Ok(None) };
        let raw = raw.context("cannot switch the terminal to raw mode")?;
        let ended = self.follow(task, signals).await;
        drop(raw);
        let Some(ended) = ended? else { return Ok(0) };
        stop::settle(context, &container, Some(ended)).await?;
        Ok(u8::try_from(ended.status).unwrap_or(255))
    }

    /// None if the user detached.
    async fn follow(self, task: &Task, mut signals: Forwarded) -> anyhow::Result<Option<TaskExit>> {
        let path = self.container.log_file();
        let mut growing = Growing::continued(self.log, &path)?;
        let mut printer = Printer::default();
        let mut stdin = self.stdin.then(|| -> io::Result<oneshot::Receiver<StreamEnd>> {
            let fifo = streams::directory(&self.container.bundle(), "init").join("stdin");
            let keys = if self.record.terminal { self.options.detach_keys.0.clone() } else { Vec::new() };
            streams::feed(fifo, keys)
        });
        let mut stdin = stdin.take().transpose().context("cannot copy standard input")?;
        let mut window = tokio::signal::unix::signal(SignalKind::window_change())?;
        let resize = async || {
            if let Some((columns, rows)) = terminal::size().filter(|_| self.record.terminal) {
                // The next change of size sets it again.
                let _ = task.resize("", columns, rows).await;
            }
        };
        resize().await;
        let wait = task.wait("");
        tokio::pin!(wait);
        loop {
            printer.print_all(&mut growing)?;
            tokio::select! {
                changed = growing.changed() => changed?,
                ended = &mut wait => {
                    // All that the process has written is in the log by now.
                    printer.print_all(&mut growing)?;
                    return Ok(Some(ended?));
                }
                number = signals.next() => match number {
                    WINDOW_CHANGED => {}
                    number if self.options.sig_proxy => forward(task, number).await?,
                    number if crate::cli::signals::asks_to_end(number) => return Ok(None),
                    _ => {}
                },
                _ = window.recv() => resize().await,
                end = next(&mut stdin) => match end {
                    StreamEnd::Detached => return Ok(None),
                    StreamEnd::Failed(error) => {
                        return Err(anyhow::Error::new(error).context("cannot copy standard input"));
                    }
                    StreamEnd::EndOfFile | StreamEnd::ReaderGone if self.close_stdin => {
                        let _ = task.close_stdin("").await;
                    }
                    StreamEnd::EndOfFile | StreamEnd::ReaderGone => {}
                },
            }
        }
    }
}

/// The process may have ended meanwhile.
async fn forward(task: &Task, number: u32) -> Result<(), ShimError> {
    match task.kill("", number, false).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_bytes_of_a_terminal() {
        assert_eq!(parse_keys("ctrl-p,ctrl-q"), Ok(Keys(vec![16, 17])));
        assert_eq!(parse_keys("ctrl-@,a,ctrl-_"), Ok(Keys(vec![0, b'a', 31])));
        assert_eq!(parse_keys(""), Ok(Keys(Vec::new())));
        for text in ["ctrl-", "ctrl-pp", "ctrl-P", ",", "ab", "ä"] {
            assert!(parse_keys(text).is_err(), "{text}");
        }
    }
}
