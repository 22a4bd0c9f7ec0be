//! The host's end of a standard stream: a connection to the agent, which takes it by its name.

use std::io;
use std::time::Duration;

use kiai_protocol::ports::STREAM_PORT;
use kiai_protocol::stream::ACCEPTED;
use kiai_protocol::stream::SECRET_BYTES;
use kiai_protocol::stream::Secret;
use kiai_protocol::stream::StreamName;
use kiai_vmm::vsock::VsockPorts;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// How long the agent may take to answer a stream's name.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a standard stream is not opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection cannot be opened, or the guest has ended.
    #[error("connect to the agent")]
    Connect(#[source] io::Error),
    /// The agent closed the connection.
    #[error("the agent does not accept the stream")]
    Refused,
    /// No answer in time.
    #[error("no answer of the agent within {} s", DEADLINE.as_secs())]
    Silent,
}

/// A secret for the streams of one process.
pub fn new_secret() -> io::Result<Secret> {
    let mut bytes = [0; SECRET_BYTES];
    // A read of so few bytes is complete, or fails.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(Secret(bytes))
}

/// Opens a stream that the agent awaits.
pub async fn open_stream(ports: &VsockPorts, name: StreamName) -> Result<UnixStream, StreamError> {
    let connection = ports.connect(STREAM_PORT).map_err(StreamError::Connect)?;
    let connection = connection.set_nonblocking(true).and_then(|()| UnixStream::from_std(connection));
    let mut connection = connection.map_err(StreamError::Connect)?;
    match tokio::time::timeout(DEADLINE, introduce(&mut connection, name)).await {
        Ok(Ok(ACCEPTED)) => Ok(connection),
        Ok(_) => Err(StreamError::Refused),
        Err(_) => Err(StreamError::Silent),
    }
}

async fn introduce(connection: &mut UnixStream, name: StreamName) -> io::Result<u8> {
    connection.write_all(&name.encode()).await?;
    connection.read_u8().await
}

#[cfg(test)]
mod tests {
    use kiai_protocol::stream::NAME_BYTES;
    use kiai_protocol::stream::StandardStream;

    use super::*;

    fn name() -> StreamName {
        StreamName { secret: new_secret().unwrap(), stream: StandardStream::Stdout }
    }

    #[test]
    fn no_two_secrets_are_alike() {
        assert_ne!(name().secret, name().secret);
    }

    #[tokio::test]
    async fn a_name_is_written_and_the_answer_read() {
        let (mut ours, mut agents) = UnixStream::pair().unwrap();
        let name = name();
        let agent = async {
            let mut said = [0; NAME_BYTES];
            agents.read_exact(&mut said).await.unwrap();
            agents.write_all(&[ACCEPTED]).await.unwrap();
            said
        };
        let (answer, said) = tokio::join!(introduce(&mut ours, name), agent);
        assert_eq!(answer.unwrap(), ACCEPTED);
        assert_eq!(StreamName::decode(&said), Ok(name));
    }

    #[tokio::test]
    async fn a_guest_that_is_gone_refuses() {
        let (mut ours, agents) = UnixStream::pair().unwrap();
        drop(agents);
        introduce(&mut ours, name()).await.unwrap_err();
    }
}
