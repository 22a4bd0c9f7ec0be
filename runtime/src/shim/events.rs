//! Events for containerd, published in order by a task of their own, so that a slow containerd does not block requests.

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::MessageFull;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::Client;
use containerd_shim_protos::shim_async::EventsClient;
use containerd_shim_protos::ttrpc;
use std::time::Duration;
use std::time::SystemTime;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::EVENTS_VARIABLE;

/// How long containerd may take for one event.
const DEADLINE: Duration = Duration::from_secs(10);

/// Publishes events; without containerd's address they are dropped.
#[derive(Clone)]
pub(super) struct Events(Option<mpsc::UnboundedSender<Word>>, String);

enum Word {
    Event(Envelope),
    /// Answered when every earlier event was published.
    Flush(oneshot::Sender<()>),
}

impl Events {
    /// Publishes to containerd's ttrpc socket, which is in `TTRPC_ADDRESS`; the CLI sets none.
    pub(super) fn new(namespace: &str) -> Self {
        let address = std::env::var(EVENTS_VARIABLE).ok().filter(|address| !address.is_empty());
        let sender = address.map(|address| {
            // Unbounded, because each process of the pod causes a handful of events only.
            let (sender, receiver) = mpsc::unbounded_channel();
            // A path, or its URI.
            let path = address.strip_prefix("unix://").unwrap_or(&address).to_owned();
            tokio::spawn(forward(path, receiver));
            sender
        });
        Self(sender, namespace.to_owned())
    }

    pub(super) fn send(&self, topic: &str, event: &impl MessageFull) {
        let Some(sender) = &self.0 else { return };
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.1.clone(),
            topic: topic.to_owned(),
            event: Some(any(event)).into(),
            ..Default::default()
        };
        // The receiver lives as long as the process.
        let _ = sender.send(Word::Event(envelope));
    }

    /// Returns once every event so far is published, or lost.
    pub(super) async fn flush(&self) {
        let Some(sender) = &self.0 else { return };
        let (flushed, wait) = oneshot::channel();
        if sender.send(Word::Flush(flushed)).is_ok() {
            let _ = wait.await;
        }
    }
}

async fn forward(address: String, mut words: mpsc::UnboundedReceiver<Word>) {
    let mut client: Option<EventsClient> = None;
    while let Some(word) = words.recv().await {
        let envelope = match word {
            Word::Event(envelope) => envelope,
            Word::Flush(flushed) => {
                let _ = flushed.send(());
                continue;
            }
        };
        let topic = envelope.topic.clone();
        if client.is_none() {
            match Client::connect(&format!("unix://{address}")).await {
                Ok(connection) => client = Some(EventsClient::new(connection)),
                Err(e) => {
                    tracing::warn!("event {topic}: {address}: {e}");
                    continue;
                }
            }
        }
        let request = ForwardRequest { envelope: Some(envelope).into(), ..Default::default() };
        let context = ttrpc::context::with_duration(DEADLINE);
        if let Some(connected) = &client
            && let Err(e) = connected.forward(context, &request).await
        {
            tracing::warn!("event {topic}: {e}");
            client = None;
        }
    }
}

/// A message with containerd's type URL, which is its full name.
pub(super) fn any(message: &impl MessageFull) -> Any {
    let name = descriptor_of(message).full_name().to_owned();
    // Messages without required fields always encode.
    let value = message.write_to_bytes().unwrap_or_default();
    Any { type_url: name, value, ..Default::default() }
}

/// A time as protobuf writes it.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Default::default()
    }
}

fn descriptor_of<M: MessageFull>(_: &M) -> containerd_shim_protos::protobuf::reflect::MessageDescriptor {
    M::descriptor()
}
