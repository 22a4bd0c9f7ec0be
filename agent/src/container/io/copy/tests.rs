//! Copying from real pipes and terminals to a host that connects, reads and does not read.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

use kiai_protocol::stream::{Secret, StandardStream, StreamName};
use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;
use rustix::time::Timespec;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::reaper::GuestExit;
use crate::stream::StreamTable;

/// Copying under way, and all that others have a hand in.
struct Copied {
    exit: watch::Sender<Option<GuestExit>>,
    whole: oneshot::Receiver<u64>,
    port: mpsc::UnboundedSender<DuplexStream>,
}

const NAME: StreamName = StreamName { secret: Secret([1; 16]), stream: StandardStream::Stdout };

fn copy(from: Output) -> Copied {
    let table = StreamTable::default();
    let slot = table.reserve(NAME).unwrap();
    let (port, accepted) = mpsc::unbounded_channel();
    let incoming = futures::stream::unfold(accepted, |mut accepted: mpsc::UnboundedReceiver<_>| async {
        accepted.recv().await.map(|connection| (Ok(connection), accepted))
    });
    tokio::spawn(table.serve(incoming));
    let (exit, watched) = watch::channel(None);
    let (told, whole) = oneshot::channel();
    tokio::spawn(output(from, Some(slot), watched, told));
    Copied { exit, whole, port }
}

impl Copied {
    /// The host connects; it has room for `room` bytes it does not read.
    async fn connect(&self, room: usize) -> DuplexStream {
        let (ours, mut host) = tokio::io::duplex(room);
        self.port.send(ours).unwrap();
        host.write_all(&NAME.encode()).await.unwrap();
        host.read_u8().await.unwrap();
        host
    }

    /// The process ends.
    fn exit(&self) {
        self.exit.send_replace(Some(GuestExit { status: 0, at: Timespec { tv_sec: 0, tv_nsec: 0 } }));
    }

    async fn whole(&mut self) -> u64 {
        let told = tokio::time::timeout(Duration::from_secs(20), &mut self.whole).await;
        told.expect("nothing is reported").unwrap()
    }
}

fn pipe() -> (Output, std::fs::File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (Output::Pipe(pipe::Receiver::from_owned_fd(reader).unwrap()), writer.into())
}

async fn read(host: &mut DuplexStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    host.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn a_child_that_holds_the_pipe_does_not_delay_the_end() {
    let (from, mut pipe) = pipe();
    let mut copied = copy(from);
    let mut host = copied.connect(1024).await;
    pipe.write_all(b"first ").unwrap();
    assert_eq!(read(&mut host, 6).await, b"first ");
    pipe.write_all(b"last").unwrap();
    copied.exit();
    assert_eq!(copied.whole().await, 10);
    assert_eq!(read(&mut host, 4).await, b"last");
    // What the child writes later arrives as well.
    pipe.write_all(b" words").unwrap();
    drop(pipe);
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b" words");
}

#[tokio::test]
async fn a_host_that_takes_nothing_does_not_delay_the_end() {
    let (from, mut pipe) = pipe();
    let mut copied = copy(from);
    let mut host = copied.connect(16).await;
    pipe.write_all(&[b'x'; 60_000]).unwrap();
    // Some of it is on its way, and the rest cannot go.
    assert_eq!(read(&mut host, 1).await, b"x");
    copied.exit();
    assert_eq!(copied.whole().await, 60_000);
    assert_eq!(read(&mut host, 59_999).await, [b'x'; 59_999]);
}

#[tokio::test]
async fn output_of_before_the_host_connects_is_kept() {
    let (from, mut pipe) = pipe();
    let mut copied = copy(from);
    pipe.write_all(b"early").unwrap();
    drop(pipe);
    copied.exit();
    assert_eq!(copied.whole().await, 5);
    let mut all = Vec::new();
    copied.connect(1024).await.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"early");
}

#[tokio::test]
async fn an_output_that_is_closed_early_is_whole() {
    let (from, mut pipe) = pipe();
    let mut copied = copy(from);
    pipe.write_all(b"all").unwrap();
    drop(pipe);
    let _host = copied.connect(1024).await;
    assert_eq!(copied.whole().await, 3);
}

/// A terminal's master side, and its other side.
fn terminal() -> (Output, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
    let owner = rustix::process::getuid().as_raw();
    (Output::Terminal(Terminal::new(master, owner).unwrap()), slave)
}

#[tokio::test]
async fn all_that_a_terminal_holds_counts() {
    let (from, slave) = terminal();
    let mut copied = copy(from);
    // As much as it takes while nobody reads, which is more than is ready to be read at once.
    rustix::fs::fcntl_setfl(&slave, OFlags::NONBLOCK).unwrap();
    let mut written = 0;
    while let Ok(count) = rustix::io::write(&slave, &[b'x'; 1000]) {
        written += count;
    }
    assert!(written > 4096, "{written}");
    copied.exit();
    assert_eq!(copied.whole().await, written as u64);
    let mut host = copied.connect(1024).await;
    assert!(read(&mut host, written).await.iter().all(|byte| *byte == b'x'));
    // A child still has the terminal.
    rustix::io::write(&slave, b"more").unwrap();
    assert_eq!(read(&mut host, 4).await, b"more");
}
