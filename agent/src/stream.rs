//! The host's connections for standard streams: each names its stream and is handed to the slot reserved for it.
//!
//! A name ([`StreamName`]) has a secret of its process, so nobody but the host can know it, and counts once: a second
//! connection with the name, one without a reserved slot and one that sends no name are closed. The number of
//! connections that have not sent their name is bounded, and so is the time they have.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kiai_protocol::stream::{ACCEPTED, NAME_BYTES, NameError, StreamName};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, oneshot};
use tokio_vsock::VsockStream;

use crate::fault::{Fault, Result};

/// Most connections without a name yet; further ones are left in the kernel's queue.
const MOST_UNNAMED: usize = 64;

/// How long a connection may take to send its name and to receive the answer.
const NAMING: Duration = Duration::from_secs(10);

/// The slots that are reserved for streams. Clones are the same table.
#[derive(Debug)]
pub struct StreamTable<S = VsockStream>(Arc<Mutex<Awaited<S>>>);

type Awaited<S> = HashMap<StreamName, oneshot::Sender<S>>;

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Malformed(#[from] NameError),
    #[error("no process waits for its stream")]
    Unknown,
    #[error("it did not send its name in time")]
    Late,
    #[error("it broke off: {0}")]
    Broken(#[from] io::Error),
}

impl<S> Default for StreamTable<S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<S> Clone for StreamTable<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> StreamTable<S> {
    /// Reserves the slot of the stream with this name, until the slot is dropped.
    pub fn reserve(&self, name: StreamName) -> Result<StreamSlot<S>> {
        match self.0.lock().entry(name) {
            Entry::Occupied(_) => {
                Err(Fault::AlreadyExists(format!("{:?} of another process has this secret", name.stream)))
            }
            Entry::Vacant(vacant) => {
                let (sender, connection) = oneshot::channel();
                vacant.insert(sender);
                Ok(StreamSlot { table: self.clone(), name, connection })
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> StreamTable<S> {
    /// Hands each connection to the slot of its stream; returns when there are no more connections.
    pub async fn serve(self, incoming: impl Stream<Item = io::Result<S>>) {
        let unnamed = Arc::new(Semaphore::new(MOST_UNNAMED));
        let mut incoming = std::pin::pin!(incoming);
        loop {
            let permit = unnamed.clone().acquire_owned().await.expect("nobody closes the semaphore");
            let connection = match incoming.next().await {
                None => return,
                Some(Ok(connection)) => connection,
                Some(Err(error)) => {
                    tracing::error!("accept a stream: {error}");
                    continue;
                }
            };
            let table = self.clone();
            tokio::spawn(async move {
                let admitted = tokio::time::timeout(NAMING, table.admit(connection)).await;
                if let Err(refusal) = admitted.unwrap_or(Err(Refusal::Late)) {
                    tracing::warn!("a connection of the host to the stream port is closed: {refusal}");
                }
                drop(permit);
            });
        }
    }

    async fn admit(&self, mut connection: S) -> Result<(), Refusal> {
        let mut name = [0; NAME_BYTES];
        connection.read_exact(&mut name).await?;
        let name = StreamName::decode(&name)?;
        let waiting = self.0.lock().remove(&name).ok_or(Refusal::Unknown)?;
        connection.write_all(&[ACCEPTED]).await?;
        waiting.send(connection).map_err(|_| Refusal::Unknown)
    }
}

/// The slot of a stream whose connection is awaited.
#[derive(Debug)]
pub struct StreamSlot<S = VsockStream> {
    table: StreamTable<S>,
    name: StreamName,
    connection: oneshot::Receiver<S>,
}

impl<S> StreamSlot<S> {
    /// The host's connection. `None` if it broke off while its name was answered.
    pub async fn connected(mut self) -> Option<S> {
        (&mut self.connection).await.ok()
    }
}

impl<S> Drop for StreamSlot<S> {
    fn drop(&mut self) {
        self.connection.close();
        // Once it was named, another may have reserved the name.
        let mut table = self.table.0.lock();
        if table.get(&self.name).is_some_and(oneshot::Sender::is_closed) {
            table.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests;
