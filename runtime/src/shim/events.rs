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
        match word {
            Word::Event(envelope) => publish(&address, &mut client, envelope).await,
            Word::Flush(flushed) => drop(flushed.send(())),
        }
    }
}

/// Publishes an event. A connection of before may be broken, as containerd was started anew: then it is tried again
/// on a new one.
async fn publish(address: &str, client: &mut Option<EventsClient>, envelope: Envelope) {
    let topic = envelope.topic.clone();
    let request = ForwardRequest { envelope: Some(envelope).into(), ..Default::default() };
    loop {
        let fresh = client.is_none();
        if fresh {
            match Client::connect(&format!("unix://{address}")).await {
                Ok(connection) => *client = Some(EventsClient::new(connection)),
                Err(e) => return tracing::warn!("event {topic}: {address}: {e}"),
            }
        }
        let Some(connected) = client.as_ref() else { return };
        let context = ttrpc::context::with_duration(DEADLINE);
        match connected.forward(context, &request).await {
            Ok(_) => return,
            // containerd has refused it, or is slow (`Others`) and may have it.
            Err(error @ (ttrpc::Error::RpcStatus(_) | ttrpc::Error::Others(_))) => {
                return tracing::warn!("event {topic}: {error}");
            }
            Err(error) => {
                *client = None;
                if fresh {
                    return tracing::warn!("event {topic}: {error}");
                }
            }
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::Events as EventsService;
    use containerd_shim_protos::shim_async::create_events;
    use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
    use containerd_shim_protos::ttrpc::asynchronous::Server;

    use super::*;

    struct Containerd(mpsc::UnboundedSender<String>);

    #[async_trait::async_trait]
    impl EventsService for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            self.0.send(request.envelope.topic.clone()).unwrap();
            Ok(Empty::new())
        }
    }

    async fn containerd(address: &str, topics: &mpsc::UnboundedSender<String>) -> Server {
        let _ = std::fs::remove_file(address);
        let service: HashMap<_, _> = create_events(Arc::new(Containerd(topics.clone())));
        let mut server = Server::new().bind(&format!("unix://{address}")).unwrap().register_service(service);
        server.start().await.unwrap();
        server
    }

    #[tokio::test]
    async fn the_first_event_after_a_restart_of_containerd_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let address = folder.path().join("events").display().to_string();
        let (topics, mut published) = mpsc::unbounded_channel();
        let event = |topic: &str| Envelope { topic: topic.into(), ..Default::default() };
        let mut client = None;
        let mut first = containerd(&address, &topics).await;
        publish(&address, &mut client, event("before")).await;
        first.shutdown().await.unwrap();
        drop(first);
        let _second = containerd(&address, &topics).await;
        publish(&address, &mut client, event("after")).await;
        assert_eq!(published.recv().await.as_deref(), Some("before"));
        assert_eq!(published.try_recv().as_deref(), Ok("after"));
    }
}
