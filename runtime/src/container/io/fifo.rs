//! Fifos of a client's, opened so that neither end ever has to wait for the other (fifo(7)).
//!
//! Each direction keeps both ends open here: a reader of ours keeps output from failing while no client reads, a
//! writer of ours keeps input from ending when one client goes and another may come. Letting go of ours is how a
//! stream ends.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use tokio::net::unix::pipe;

/// Our own other end of a fifo; dropping it leaves the fifo to the clients.
pub(super) type Kept = OwnedFd;

/// Whether the path is a fifo; an error names nothing, the caller does.
pub(super) fn is_fifo(path: &Path) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode) == FileType::Fifo)
}

fn open(path: &Path, direction: OFlags) -> io::Result<OwnedFd> {
    let flags = direction | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The writing end, and a reader of ours.
pub(super) fn output(path: &Path) -> io::Result<(pipe::Sender, Kept)> {
    let reader = open(path, OFlags::RDONLY)?;
    let writer = open(path, OFlags::WRONLY)?;
    Ok((pipe::Sender::from_owned_fd(writer)?, reader))
}

/// The reading end, and a writer of ours.
pub(super) fn input(path: &Path) -> io::Result<(pipe::Receiver, Kept)> {
    let reader = open(path, OFlags::RDONLY)?;
    let writer = open(path, OFlags::WRONLY)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}
