//! Copying between real fifos and stream sockets, as a client and a guest would use them.

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::StdioUri;
use super::copy;
use super::copy::Meter;
use super::fifo;
use super::sink::Sink;

const SOON: Duration = Duration::from_secs(20);

/// A fifo in a directory of its own.
fn make_fifo() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    (directory, path)
}

/// A connection to the guest, and the guest's end of it.
fn connected() -> (oneshot::Receiver<tokio::net::UnixStream>, UnixStream) {
    let (ours, guests) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (connect, connected) = oneshot::channel();
    connect.send(tokio::net::UnixStream::from_std(ours).unwrap()).unwrap();
    (connected, guests)
}

/// For a copy that nobody waits for.
fn unmetered() -> Meter {
    Meter { progress: Arc::default(), owed: watch::channel(None).1, whole: oneshot::channel().0 }
}

async fn soon<T>(task: JoinHandle<T>) -> T {
    tokio::time::timeout(SOON, task).await.expect("hangs").unwrap()
}

/// Bytes no two places of which look alike.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
}

fn read_all(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        all
    })
}

#[tokio::test]
async fn output_arrives_whole_and_ends() {
    let (_directory, path) = make_fifo();
    let (sink, kept) = Sink::open("stdout", &StdioUri::Path(path.clone()), false).unwrap();
    let (connection, mut guest) = connected();
    let copying = tokio::spawn(copy::output("stdout", connection, sink, unmetered()));
    let reading = read_all(File::open(&path).unwrap());
    let sent = pattern(3 << 20);
    let writing = tokio::task::spawn_blocking({
        let sent = sent.clone();
        move || guest.write_all(&sent).unwrap()
    });
    soon(writing).await;
    soon(copying).await;
    drop(kept);
    assert!(soon(reading).await == sent, "what was read is not what was written");
}

#[tokio::test]
async fn output_nobody_reads_is_dropped_once_ours_is_let_go() {
    let (_directory, path) = make_fifo();
    let (sink, kept) = Sink::open("stdout", &StdioUri::Path(path), false).unwrap();
    let (connection, mut guest) = connected();
    let copying = tokio::spawn(copy::output("stdout", connection, sink, unmetered()));
    // More than the fifo and the socket take: the writer waits, as it must.
    let writing = tokio::task::spawn_blocking(move || guest.write_all(&pattern(4 << 20)).unwrap());
    drop(kept);
    soon(writing).await;
    soon(copying).await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_writer() {
    let (_directory, path) = make_fifo();
    let (sink, kept) = Sink::open("stdout", &StdioUri::Path(path.clone()), false).unwrap();
    let (connection, mut guest) = connected();
    let copying = tokio::spawn(copy::output("stdout", connection, sink, unmetered()));
    guest.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let (mut guest, taken) = soon(tokio::task::spawn_blocking(move || {
        let (sent, mut taken) = (pattern(16 << 20), 0);
        while let Ok(count) = guest.write(&sent[taken..]) {
            taken += count;
        }
        (guest, taken)
    }))
    .await;
    assert!(taken < 4 << 20, "{taken} bytes were taken though nobody reads");
    // It goes on where it stopped once somebody reads.
    guest.set_write_timeout(None).unwrap();
    let reading = read_all(File::open(&path).unwrap());
    let rest = tokio::task::spawn_blocking(move || guest.write_all(&pattern(16 << 20)[taken..]).unwrap());
    soon(rest).await;
    soon(copying).await;
    drop(kept);
    assert!(soon(reading).await == pattern(16 << 20));
}

#[tokio::test]
async fn input_ends_when_it_is_closed_and_all_of_it_is_delivered() {
    let (_directory, path) = make_fifo();
    let (receiver, kept) = fifo::input(&path).unwrap();
    let (connection, guest) = connected();
    let copying = tokio::spawn(copy::input(connection, receiver));
    let reading = read_all(guest);
    let sent = pattern(1 << 20);
    let (first, second) = (sent[..1000].to_vec(), sent[1000..].to_vec());
    for part in [first, second] {
        // A client that goes is not the end: another may come.
        let path = path.clone();
        let writing = tokio::task::spawn_blocking(move || {
            File::options().write(true).open(path).unwrap().write_all(&part).unwrap();
        });
        soon(writing).await;
    }
    assert!(!reading.is_finished());
    drop(kept);
    assert!(soon(reading).await == sent);
    soon(copying).await;
}

#[tokio::test]
async fn input_no_client_ever_opens_ends_when_it_is_closed() {
    let (_directory, path) = make_fifo();
    let (receiver, kept) = fifo::input(&path).unwrap();
    let (connection, guest) = connected();
    let copying = tokio::spawn(copy::input(connection, receiver));
    drop(kept);
    assert!(soon(read_all(guest)).await.is_empty());
    soon(copying).await;
}

#[tokio::test]
async fn a_process_that_closed_its_input_lets_the_client_know() {
    let (_directory, path) = make_fifo();
    let (receiver, kept) = fifo::input(&path).unwrap();
    let (connection, guest) = connected();
    let copying = tokio::spawn(copy::input(connection, receiver));
    let mut client = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    drop(guest);
    client.write_all(b"for nobody").unwrap();
    soon(copying).await;
    drop(kept);
    assert_eq!(client.write(b"more").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_full_disk_does_not_stop_the_process() {
    let (sink, _) = Sink::open("stdout", &StdioUri::Path("/dev/full".into()), false).unwrap();
    let (connection, mut guest) = connected();
    let copying = tokio::spawn(copy::output("stdout", connection, sink, unmetered()));
    soon(tokio::task::spawn_blocking(move || guest.write_all(&pattern(4 << 20)).unwrap())).await;
    soon(copying).await;
}

#[tokio::test]
async fn a_file_is_appended_to_and_a_missing_fifo_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    std::fs::write(&path, "before ").unwrap();
    let (sink, _) = Sink::open("stdout", &StdioUri::File(path.clone()), false).unwrap();
    let (connection, mut guest) = connected();
    let copying = tokio::spawn(copy::output("stdout", connection, sink, unmetered()));
    guest.write_all(b"after").unwrap();
    drop(guest);
    soon(copying).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before after");

    let missing = directory.path().join("none");
    let error = Sink::open("stderr", &StdioUri::Path(missing.clone()), false).err().unwrap();
    assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
    assert!(!missing.exists(), "a mistyped fifo must not become a file");
}

#[tokio::test]
async fn output_is_whole_when_what_the_process_wrote_is_delivered_though_a_child_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let (sink, _) = Sink::open("stdout", &StdioUri::Log(path.clone()), false).unwrap();
    let (connection, mut guest) = connected();
    let ((owed, told), (done, mut whole)) = (watch::channel(None), oneshot::channel());
    let meter = Meter { progress: Arc::default(), owed: told, whole: done };
    let copying = tokio::spawn(copy::output("stdout", connection, sink, meter));
    guest.write_all(b"its own").unwrap();
    owed.send_replace(Some(12));
    tokio::time::timeout(Duration::from_millis(200), &mut whole).await.expect_err("five bytes are missing");
    guest.write_all(b" line").unwrap();
    tokio::time::timeout(SOON, whole).await.expect("hangs").unwrap();
    // An unfinished line as well.
    assert!(std::fs::read_to_string(&path).unwrap().contains("its own line"));
    guest.write_all(b"a child's").unwrap();
    drop(guest);
    soon(copying).await;
    assert!(std::fs::read_to_string(&path).unwrap().contains("a child's"));
}
