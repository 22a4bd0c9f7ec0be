//! A command with a deadline.

use std::fmt;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;

use crate::evidence;
use crate::stream::Stream;

/// How long one command may take, on an emulated machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(300);

/// A command that has ended.
pub struct Finished {
    what: String,
    /// Exit status; none if a signal ended it.
    pub code: Option<i32>,
    /// Everything it wrote to standard output.
    pub stdout: Vec<u8>,
    /// Everything it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output of a command that had to succeed, without the last line's end.
    pub fn success(&self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.text().trim_end_matches('\n').to_owned()
    }

    /// Standard error of a command that had to end with `code`.
    pub fn failure(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self}");
        &self.stderr
    }

    /// Checks that the command was refused by kiai itself, with a message that has each of `words` in it.
    pub fn refused(&self, words: &[&str]) {
        assert!(self.code.is_some_and(|code| code != 0), "{self}");
        let message = self.stderr.to_lowercase();
        for word in words {
            assert!(message.contains(&word.to_lowercase()), "{word:?} is not mentioned\n{self}");
        }
        assert!(!message.contains("panicked"), "{self}");
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.stdout[..self.stdout.len().min(2000)];
        writeln!(f, "`{}` ended with {:?}", self.what, self.code)?;
        write!(f, "stdout: {}\nstderr: {}", String::from_utf8_lossy(shown), self.stderr)
    }
}

/// A command that is running. Dropping it kills it.
pub struct Running {
    what: String,
    child: Child,
    /// Standard output as it comes.
    pub stdout: Stream,
    stderr: Stream,
    deadline: Instant,
}

impl Running {
    /// Starts `command` with `input` (none: nothing to read at all) on its standard input.
    pub fn start(mut command: Command, input: Option<Vec<u8>>) -> Running {
        let what = format!("{command:?}").replace('"', "");
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        if let Some(input) = input {
            let mut stdin = child.stdin.take().unwrap();
            // A command that stops reading early is not an error of ours.
            std::thread::spawn(move || stdin.write_all(&input));
        }
        let stdout = Stream::of(child.stdout.take().unwrap());
        let stderr = Stream::of(child.stderr.take().unwrap());
        Running { what, child, stdout, stderr, deadline: Instant::now() + DEADLINE }
    }

    /// Waits for standard output to contain `text`; all of it so far.
    pub fn until(&self, text: &str) -> String {
        self.stdout.until(text, self.deadline)
    }

    /// Waits for standard error to contain `text`; all of it so far.
    pub fn until_error(&self, text: &str) -> String {
        self.stderr.until(text, self.deadline)
    }

    /// Sends a signal to the command itself.
    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end of the command and of its output.
    pub fn finish(mut self) -> Finished {
        let pidfd = rustix::process::pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let left = self.deadline.saturating_duration_since(Instant::now()).try_into().unwrap();
        let ended = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)).unwrap();
        if ended == 0 {
            evidence::stacks(self.pid().as_raw_nonzero().get(), &self.what);
            let _ = self.child.kill();
        }
        let status = self.child.wait().unwrap();
        let finished = Finished {
            what: self.what.clone(),
            code: status.code(),
            stdout: self.stdout.to_end(self.deadline),
            stderr: String::from_utf8_lossy(&self.stderr.to_end(self.deadline)).into_owned(),
        };
        assert_ne!(ended, 0, "did not end within {DEADLINE:?}: {finished}");
        assert!(Instant::now() < self.deadline, "something keeps its output open: {finished}");
        assert!(status.signal().is_none(), "ended by signal {:?}: {finished}", status.signal());
        finished
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command of the machine that has to succeed; its standard output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    Running::start(command, None).finish().success()
}
