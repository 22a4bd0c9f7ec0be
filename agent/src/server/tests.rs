//! Calls over a real connection to an agent with mistakes in it.

use std::os::unix::net::UnixStream as StdUnixStream;

use kiai_protocol::service::{AgentClient, create_agent};
use tokio::net::UnixStream;
use ttrpc::Code;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::context::Context;

use futures::StreamExt;

use super::*;

/// An agent with mistakes in three of its calls.
struct Mistaken {
    waiting: Arc<Notify>,
}

#[async_trait]
impl Agent for Mistaken {
    async fn guest_details(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<GuestDetailsResponse> {
        answer("guest_details", async { panic!("in the handler") }).await
    }

    async fn set_clock(&self, _: &TtrpcContext, _: SetClockRequest) -> ttrpc::Result<Empty> {
        answer("set_clock", whole(async { panic!("in a task of its own") })).await
    }

    async fn remove_pci(&self, _: &TtrpcContext, _: RemovePciRequest) -> ttrpc::Result<Empty> {
        answer("remove_pci", blocking(|| panic!("on a thread of its own"))).await
    }

    async fn wait_process(&self, _: &TtrpcContext, _: ProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
        let work = async {
            self.waiting.notified().await;
            Ok(WaitProcessResponse { exit_status: 3, ..Default::default() })
        };
        answer("wait_process", work).await
    }
}

/// The host's end of a connection to that agent.
async fn connect(waiting: Arc<Notify>) -> (AgentClient, ttrpc::r#async::Server) {
    let (ours, hosts) = StdUnixStream::pair().unwrap();
    for end in [&ours, &hosts] {
        end.set_nonblocking(true).unwrap();
    }
    let ours = UnixStream::from_std(ours).unwrap();
    let listener = futures::stream::iter([Ok(ours)]).chain(futures::stream::pending());
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(Listener::new(listener))
        .register_service(create_agent(Arc::new(Mistaken { waiting })));
    server.start().await.unwrap();
    (AgentClient::new(ttrpc::r#async::Client::new(Socket::try_from(hosts).unwrap())), server)
}

/// A call that is not answered is a failure as well.
async fn soon<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), call).await.expect("no answer to a call")
}

#[tokio::test]
async fn a_panic_fails_its_own_call_and_no_other() {
    let waiting = Arc::new(Notify::new());
    let (host, _server) = connect(waiting.clone()).await;
    let context = Context::default;
    let other = tokio::spawn({
        let host = host.clone();
        async move { host.wait_process(context(), &ProcessRequest::default()).await }
    });
    let panics = [
        (soon(host.guest_details(context(), &Empty::default())).await.map(drop), "in the handler"),
        (
            soon(host.set_clock(context(), &SetClockRequest::default())).await.map(drop),
            "in a task of its own",
        ),
        (
            soon(host.remove_pci(context(), &RemovePciRequest::default())).await.map(drop),
            "on a thread of its own",
        ),
    ];
    for (result, message) in panics {
        let Err(ttrpc::Error::RpcStatus(status)) = result else { panic!("{result:?}") };
        assert_eq!(status.code(), Code::INTERNAL);
        assert!(status.message().contains(message), "{}", status.message());
    }
    // The call under way is answered, and so is the next.
    waiting.notify_one();
    assert_eq!(soon(other).await.unwrap().unwrap().exit_status, 3);
    waiting.notify_one();
    assert_eq!(soon(host.wait_process(context(), &ProcessRequest::default())).await.unwrap().exit_status, 3);
}
