//! The streams of a process in the foreground: fifos in the bundle, and a thread each that carries bytes
//! between them and our own standard streams. No byte is looked at.
//!
//! Threads, because standard input may be a file, a pipe or a terminal, and only a blocking read serves all
//! of them. A thread that still waits when the command ends, ends with it.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::FileType;
use rustix::fs::Mode;
use tokio::sync::oneshot;

use crate::cli::task::StreamUris;
use crate::store::file;
use crate::store::file::FileError;
use crate::store::file::io_error;

/// Why a stream ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// All was carried.
    EndOfFile,
    /// Our own standard output or error is closed: nobody reads any more.
    ReaderGone,
    /// A stream could not be read or written.
    Failed(io::Error),
}

/// The fifos of one process, and who carries their bytes.
pub(super) struct Streams {
    /// What the shim is told.
    pub(super) uris: StreamUris,
    directory: PathBuf,
    interactive: bool,
}

/// The streams under way.
pub(super) struct Flow {
    /// Standard input came to its end and was handed over whole.
    pub(super) stdin: Option<oneshot::Receiver<Ending>>,
    /// Standard output, or all of a terminal's output.
    pub(super) stdout: Option<oneshot::Receiver<Ending>>,
    /// Standard error.
    pub(super) stderr: Option<oneshot::Receiver<Ending>>,
}

impl Streams {
    /// Makes the fifos in a new directory.
    ///
    /// # Errors
    /// The directory or a fifo cannot be made.
    pub(super) fn create(directory: PathBuf, interactive: bool, terminal: bool) -> Result<Self, FileError> {
        file::create_directories(&directory)?;
        let fifo = |name: &str, wanted: bool| -> Result<String, FileError> {
            if !wanted {
                return Ok(String::new());
            }
            let path = directory.join(name);
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0)
                .map_err(|errno| io_error("create fifo", &path)(errno.into()))?;
            Ok(path.display().to_string())
        };
        let uris = StreamUris {
            stdin: fifo("stdin", interactive)?,
            stdout: fifo("stdout", true)?,
            stderr: fifo("stderr", !terminal)?,
            terminal,
        };
        Ok(Self { uris, directory, interactive })
    }

    /// Starts carrying. The fifos are opened by the threads, each as soon as the shim opens its side.
    pub(super) fn start(&self) -> io::Result<Flow> {
        let stdin = self.interactive.then(|| {
            let fifo = self.directory.join("stdin");
            carry("stdin", move || {
                let to = OpenOptions::new().write(true).open(&fifo)?;
                copy(io::stdin(), &to)
            })
        });
        let output = |name: &'static str, uri: &str| {
            let fifo = PathBuf::from(uri);
            (!uri.is_empty()).then(|| {
                carry(name, move || {
                    let from = File::open(&fifo)?;
                    if name == "stdout" { copy(&from, io::stdout()) } else { copy(&from, io::stderr()) }
                })
            })
        };
        Ok(Flow {
            stdin: stdin.transpose()?,
            stdout: output("stdout", &self.uris.stdout).transpose()?,
            stderr: output("stderr", &self.uris.stderr).transpose()?,
        })
    }

    /// Removes the fifos.
    pub(super) fn remove(&self) -> Result<(), FileError> {
        file::remove_tree(&self.directory)
    }
}

/// The directory of one process's fifos.
pub(super) fn directory(bundle: &Path, process: &str) -> PathBuf {
    bundle.join("io").join(process)
}

fn carry(
    name: &str,
    work: impl FnOnce() -> io::Result<Ending> + Send + 'static,
) -> io::Result<oneshot::Receiver<Ending>> {
    let (done, receiver) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody listens any more when the process ended first.
        let _ = done.send(work().unwrap_or_else(Ending::Failed));
    })?;
    Ok(receiver)
}

/// Copies until the end of `from`. Descriptors are used directly: std's standard output would hold lines back.
fn copy(from: impl AsFd, to: impl AsFd) -> io::Result<Ending> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match rustix::io::read(from, &mut buffer[..]) {
            Ok(0) => return Ok(Ending::EndOfFile),
            Ok(length) => length,
            Err(rustix::io::Errno::INTR) => continue,
            // Somebody else made the terminal we share non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                wait(from, rustix::event::PollFlags::IN)?;
                continue;
            }
            // A terminal whose other side is gone.
            Err(rustix::io::Errno::IO) => return Ok(Ending::EndOfFile),
            Err(errno) => return Err(errno.into()),
        };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => wait(to, rustix::event::PollFlags::OUT)?,
                Err(rustix::io::Errno::PIPE) => return Ok(Ending::ReaderGone),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn wait(fd: impl AsFd, events: rustix::event::PollFlags) -> io::Result<()> {
    let mut polled = [rustix::event::PollFd::new(&fd, events)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;

    use super::*;

    #[test]
    fn every_byte_arrives() {
        let (from, mut source) = io::pipe().unwrap();
        let (mut sink, to) = io::pipe().unwrap();
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let sent = content.clone();
        let writer = std::thread::spawn(move || source.write_all(&sent));
        let copier = std::thread::spawn(move || copy(&from, &to));
        let mut received = Vec::new();
        sink.read_to_end(&mut received).unwrap();
        assert!(received == content);
        writer.join().unwrap().unwrap();
        assert!(matches!(copier.join().unwrap(), Ok(Ending::EndOfFile)));
    }

    #[test]
    fn a_reader_that_went_away_is_told_apart() {
        let (from, mut source) = io::pipe().unwrap();
        let (sink, to) = io::pipe().unwrap();
        drop(sink);
        source.write_all(b"x").unwrap();
        assert!(matches!(copy(&from, &to), Ok(Ending::ReaderGone)));
    }
}
