//! Waiting for devices: the kernel's uevents over netlink (kobject_uevent, group 1).
//!
//! The only way the agent waits for something to appear. A uevent carries no decision here: it only says
//! that it is worth looking again, and the looking is done in sysfs, which is the truth. So an event lost to
//! a full socket buffer costs nothing, and no matcher can miss an event it has not foreseen.

use std::sync::Arc;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_KOBJECT_UEVENT;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::{Notify, OnceCell};

/// Wakes those who wait for a device.
#[derive(Debug, Default)]
pub struct Uevents {
    listening: OnceCell<()>,
    happened: Arc<Notify>,
}

impl Uevents {
    /// Calls `look` until it finds something: at once, and after each uevent. `None` when `timeout` passes.
    ///
    /// The listener is in place before the first look, so nothing that comes after it is missed.
    pub async fn wait_until<T>(
        &self,
        timeout: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> std::io::Result<Option<T>> {
        if let Some(found) = look() {
            return Ok(Some(found));
        }
        self.listening.get_or_try_init(|| listen(self.happened.clone())).await?;
        let search = async {
            loop {
                let mut happened = std::pin::pin!(self.happened.notified());
                happened.as_mut().enable();
                if let Some(found) = look() {
                    return found;
                }
                happened.await;
            }
        };
        Ok(tokio::time::timeout(timeout, search).await.ok())
    }
}

async fn listen(happened: Arc<Notify>) -> std::io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_KOBJECT_UEVENT)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 1))?;
    tokio::spawn(async move {
        loop {
            match socket.recv_from_full().await {
                // Only the kernel (port 0) is believed.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok(_) => happened.notify_waiters(),
                // The buffer ran over: something happened, nobody knows what. Looking again finds out.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => happened.notify_waiters(),
                Err(error) => {
                    tracing::error!("uevents: {error}");
                    return;
                }
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_there_already_is_found_without_an_event() {
        let found = Uevents::default().wait_until(Duration::ZERO, || Some(1)).await.unwrap();
        assert_eq!(found, Some(1));
    }

    #[tokio::test]
    async fn the_wait_ends_with_its_deadline() {
        let found = Uevents::default().wait_until(Duration::from_millis(5), || None::<()>).await.unwrap();
        assert_eq!(found, None);
    }
}
