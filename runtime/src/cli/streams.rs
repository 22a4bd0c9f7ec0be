//! The streams of a process in the foreground: fifos in the bundle, each with a thread that copies bytes between it and
//! a standard stream of this command.
//!
//! Threads, because standard input may be a file, a pipe or a terminal, and only a blocking read works for all of them.
//! A thread that still waits when the command ends, ends with it.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
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
pub(super) enum StreamEnd {
    /// Every byte was copied.
    EndOfFile,
    /// Standard output or error of this command is closed.
    ReaderGone,
    /// A stream could not be read or written.
    Failed(io::Error),
    /// The keys to detach were typed.
    Detached,
}

/// The fifos of one process.
pub(super) struct ProcessFifos {
    /// The URIs for the shim.
    pub(super) uris: StreamUris,
    directory: PathBuf,
    interactive: bool,
}

/// The streams that are being copied; each tells its end.
pub(super) struct Flow {
    /// Standard input has ended and is delivered.
    pub(super) stdin: Option<oneshot::Receiver<StreamEnd>>,
    /// Standard output, or all of a terminal's output.
    pub(super) stdout: Option<oneshot::Receiver<StreamEnd>>,
    /// Standard error.
    pub(super) stderr: Option<oneshot::Receiver<StreamEnd>>,
}

impl ProcessFifos {
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

    /// Starts the threads. Each opens its fifo, which blocks until the shim opens the other side.
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

/// Copies standard input to a fifo that the shim reads, on a thread, until its end or until `keys` are typed in a row.
pub(super) fn feed(fifo: PathBuf, keys: Vec<u8>) -> io::Result<oneshot::Receiver<StreamEnd>> {
    carry("stdin", move || {
        let to = OpenOptions::new().write(true).open(&fifo)?;
        if keys.is_empty() { copy(io::stdin(), &to) } else { copy_until(io::stdin(), &to, &keys) }
    })
}

/// As [`copy`]; ends when the bytes `keys` come in a row, which are not copied.
fn copy_until(from: impl AsFd, to: impl AsFd, keys: &[u8]) -> io::Result<StreamEnd> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let mut buffer = vec![0; 4 << 10];
    let mut held = 0;
    loop {
        let Some(length) = read(from, &mut buffer)? else { return Ok(StreamEnd::EndOfFile) };
        let mut typed = Vec::with_capacity(length + keys.len());
        for byte in &buffer[..length] {
            if *byte == keys[held] {
                held += 1;
                if held == keys.len() {
                    return Ok(write_all(to, &typed)?.unwrap_or(StreamEnd::Detached));
                }
                continue;
            }
            typed.extend_from_slice(&keys[..held]);
            held = usize::from(*byte == keys[0]);
            if held == 0 {
                typed.push(*byte);
            }
        }
        if let Some(end) = write_all(to, &typed)? {
            return Ok(end);
        }
    }
}

/// The directory of one process's fifos.
pub(super) fn directory(bundle: &Path, process: &str) -> PathBuf {
    bundle.join("io").join(process)
}

fn carry(
    name: &str,
    work: impl FnOnce() -> io::Result<StreamEnd> + Send + 'static,
) -> io::Result<oneshot::Receiver<StreamEnd>> {
    let (done, receiver) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The receiver is dropped if the process ended first.
        let _ = done.send(work().unwrap_or_else(StreamEnd::Failed));
    })?;
    Ok(receiver)
}

/// Copies until the end of `from`. Uses descriptors directly, because std's standard output buffers lines.
fn copy(from: impl AsFd, to: impl AsFd) -> io::Result<StreamEnd> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Some(length) = read(from, &mut buffer)? else { return Ok(StreamEnd::EndOfFile) };
        if let Some(end) = write_all(to, &buffer[..length])? {
            return Ok(end);
        }
    }
}

/// Reads some bytes; none at the end.
fn read(from: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match rustix::io::read(from, &mut *buffer) {
            Ok(0) => return Ok(None),
            Ok(length) => return Ok(Some(length)),
            Err(rustix::io::Errno::INTR) => {}
            // Another process has made the shared terminal non-blocking.
            Err(rustix::io::Errno::AGAIN) => wait(from, rustix::event::PollFlags::IN)?,
            // The terminal's other side is closed.
            Err(rustix::io::Errno::IO) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Writes all bytes; returns an end if the reader is gone.
fn write_all(to: BorrowedFd<'_>, mut rest: &[u8]) -> io::Result<Option<StreamEnd>> {
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait(to, rustix::event::PollFlags::OUT)?,
            Err(rustix::io::Errno::PIPE) => return Ok(Some(StreamEnd::ReaderGone)),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(None)
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
        assert!(matches!(copier.join().unwrap(), Ok(StreamEnd::EndOfFile)));
    }

    #[test]
    fn keys_in_a_row_detach_and_are_not_copied() {
        let typed = |text: &[u8], keys: &[u8]| {
            let (from, mut source) = io::pipe().unwrap();
            let (mut sink, to) = io::pipe().unwrap();
            source.write_all(text).unwrap();
            drop(source);
            let end = copy_until(&from, &to, keys).unwrap();
            drop(to);
            let mut copied = Vec::new();
            sink.read_to_end(&mut copied).unwrap();
            (copied, matches!(end, StreamEnd::Detached))
        };
        let keys = [16, 17];
        assert_eq!(typed(b"ab\x10\x11cd", &keys), (b"ab".to_vec(), true));
        assert_eq!(typed(b"a\x10b\x11", &keys), (b"a\x10b\x11".to_vec(), false));
        assert_eq!(typed(b"\x10\x10\x11x", &keys), (b"\x10".to_vec(), true));
        assert_eq!(typed(b"qa", b"q"), (Vec::new(), true));
    }

    #[test]
    fn a_closed_output_is_distinguished_from_an_error() {
        let (from, mut source) = io::pipe().unwrap();
        let (sink, to) = io::pipe().unwrap();
        drop(sink);
        source.write_all(b"x").unwrap();
        assert!(matches!(copy(&from, &to), Ok(StreamEnd::ReaderGone)));
    }
}
