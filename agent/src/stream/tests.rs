//! Connections as the host and others would make them, over pipes in memory.

use kiai_protocol::stream::{Secret, StandardStream};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::*;

const NAME: StreamName = StreamName { secret: Secret([7; 16]), stream: StandardStream::Stdout };

/// What a connection that is refused hears.
const NOTHING: [u8; 0] = [];

/// A table that serves, and the way to connect to it.
fn served() -> (StreamTable<DuplexStream>, mpsc::UnboundedSender<DuplexStream>) {
    let table = StreamTable::default();
    let (connect, accepted) = mpsc::unbounded_channel();
    let incoming = futures::stream::unfold(accepted, |mut accepted: mpsc::UnboundedReceiver<_>| async {
        accepted.recv().await.map(|connection| (Ok(connection), accepted))
    });
    tokio::spawn(table.clone().serve(incoming));
    (table, connect)
}

/// Connects and writes `bytes`; the host's end.
async fn connect(port: &mpsc::UnboundedSender<DuplexStream>, bytes: &[u8]) -> DuplexStream {
    let (ours, mut hosts) = tokio::io::duplex(1024);
    port.send(ours).unwrap();
    hosts.write_all(bytes).await.unwrap();
    hosts
}

/// All that the agent says to a connection that it closes.
async fn answer(mut connection: DuplexStream) -> Vec<u8> {
    let mut said = Vec::new();
    connection.read_to_end(&mut said).await.unwrap();
    said
}

#[tokio::test]
async fn a_connection_reaches_who_waits_for_its_name() {
    let (table, port) = served();
    let slot = table.reserve(NAME).unwrap();
    let host = connect(&port, &[&NAME.encode()[..], b"first bytes"].concat()).await;
    let mut stream = slot.connected().await.unwrap();
    let mut read = [0; 11];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"first bytes");
    stream.write_all(b"x").await.unwrap();
    drop(stream);
    assert_eq!(answer(host).await, [ACCEPTED, b'x']);
}

#[tokio::test]
async fn a_name_counts_once_and_only_while_it_is_waited_for() {
    let (table, port) = served();
    let slot = table.reserve(NAME).unwrap();
    assert!(matches!(table.reserve(NAME), Err(Fault::AlreadyExists(_))));
    let other = StreamName { stream: StandardStream::Stderr, ..NAME };
    let guessed = StreamName { secret: Secret([8; 16]), ..NAME };
    for unknown in [other, guessed] {
        assert_eq!(answer(connect(&port, &unknown.encode()).await).await, NOTHING);
    }
    // What was refused has taken nothing from the host's own.
    let first = connect(&port, &NAME.encode()).await;
    let stream = slot.connected().await.unwrap();
    assert_eq!(answer(connect(&port, &NAME.encode()).await).await, NOTHING, "the name a second time");
    drop(stream);
    assert_eq!(answer(first).await, [ACCEPTED]);

    drop(table.reserve(NAME).unwrap());
    assert_eq!(answer(connect(&port, &NAME.encode()).await).await, NOTHING, "the slot is gone");
    assert!(table.0.lock().is_empty());
}

#[tokio::test]
async fn a_slot_of_before_does_not_take_a_later_one_with_it() {
    let (table, port) = served();
    let first = table.reserve(NAME).unwrap();
    let host = connect(&port, &NAME.encode()).await;
    while !table.0.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    let second = table.reserve(NAME).unwrap();
    drop(first);
    assert_eq!(answer(host).await, [ACCEPTED]);
    let _host = connect(&port, &NAME.encode()).await;
    assert!(second.connected().await.is_some());
}

#[tokio::test]
async fn malformed_and_short_names_are_refused() {
    let (table, port) = served();
    let _slot = table.reserve(NAME).unwrap();
    for (at, byte) in [(0, 0), (0, 2), (1, 3), (1, 0xff)] {
        let mut name = NAME.encode();
        name[at] = byte;
        assert_eq!(answer(connect(&port, &name).await).await, NOTHING, "{name:?}");
    }
    let mut short = connect(&port, &NAME.encode()[..NAME_BYTES - 1]).await;
    short.shutdown().await.unwrap();
    assert_eq!(answer(short).await, NOTHING);
    assert_eq!(table.0.lock().len(), 1, "who waits goes on waiting");
}

#[tokio::test(start_paused = true)]
async fn connections_without_a_name_are_few_and_short() {
    let (table, port) = served();
    let slot = table.reserve(NAME).unwrap();
    let silent: Vec<_> = futures::future::join_all((0..MOST_UNNAMED).map(|_| connect(&port, b"\x01"))).await;
    let begun = tokio::time::Instant::now();
    // There is no room for it until the silent ones are closed, and then there is.
    let _host = connect(&port, &NAME.encode()).await;
    assert!(slot.connected().await.is_some());
    assert_eq!(begun.elapsed().as_secs(), NAMING.as_secs());
    for connection in silent {
        assert_eq!(answer(connection).await, NOTHING);
    }
}
