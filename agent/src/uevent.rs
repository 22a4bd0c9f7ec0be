//! Waiting for devices with the kernel's uevents over netlink (kobject_uevent, group 1).
//!
//! This is the only way in which the agent waits for a device. A uevent's content is ignored: it only causes another
//! look at sysfs. So an event that is lost to a full socket buffer does no harm, and no event can be misread.

use std::sync::Arc;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_KOBJECT_UEVENT;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::{Notify, OnceCell};

/// Wakes tasks that wait for a device.
#[derive(Debug, Default)]
pub struct Uevents {
    listening: OnceCell<()>,
    happened: Arc<Notify>,
}

impl Uevents {
    /// Calls `look` at once and after each uevent until it returns a value. `None` after `timeout`.
    ///
    /// If the first look finds nothing, the listener is started before the next look, so that no later event is missed.
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
                // Events that do not come from the kernel (port 0) are ignored.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok(_) => happened.notify_waiters(),
                // The buffer overflowed and events are lost: look again.
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
