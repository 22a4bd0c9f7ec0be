//! The ports on which the agent listens. Only the host's connections are accepted: a container can open vsock sockets
//! as well, and a kernel with vsock loopback would lead them here.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::Stream;
use futures::stream::{self, StreamExt};
use kiai_protocol::ports::HOST_CID;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// Listens on a port. Yields the host's connections; all others are closed at once.
pub fn listen(port: u32) -> io::Result<impl Stream<Item = io::Result<VsockStream>> + Send> {
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
    let accepted = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(connection, peer)| (connection, peer.cid()));
        Some((accepted, listener))
    });
    Ok(of_the_host(accepted))
}

fn of_the_host<S>(accepted: impl Stream<Item = io::Result<(S, u32)>>) -> impl Stream<Item = io::Result<S>> {
    accepted.filter_map(|accepted| async {
        match accepted {
            Ok((connection, HOST_CID)) => Some(Ok(connection)),
            Ok((_, cid)) => {
                report(cid);
                None
            }
            Err(error) => Some(Err(error)),
        }
    })
}

/// A container decides how often it tries, so this is logged once.
fn report(cid: u32) {
    static REPORTED: AtomicBool = AtomicBool::new(false);
    if !REPORTED.swap(true, Ordering::Relaxed) {
        tracing::warn!("a vsock connection of CID {cid} is refused; further ones are not logged");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn nobody_but_the_host_is_let_in() {
        let (mut accepted, mut ends) = (Vec::new(), Vec::new());
        // The hypervisor, the loopback, the host, the guest itself, any.
        for cid in [0, 1, 2, 3, VMADDR_CID_ANY] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            accepted.push(Ok((ours, cid)));
            ends.push((cid, theirs));
        }
        accepted.push(Err(io::ErrorKind::ConnectionAborted.into()));
        let let_in: Vec<_> = of_the_host(stream::iter(accepted)).collect().await;
        assert!(matches!(let_in[..], [Ok(_), Err(_)]), "{let_in:?}");
        for (cid, mut end) in ends {
            match io::Read::read(&mut end, &mut [0]) {
                Ok(0) => assert_ne!(cid, 2, "the host's connection is closed"),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    assert_eq!(cid, 2, "a connection is open to CID {cid}");
                }
                Ok(_) => panic!("nobody has written"),
            }
        }
    }
}
