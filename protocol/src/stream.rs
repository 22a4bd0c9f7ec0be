//! How a connection to [`STREAM_PORT`](crate::ports::STREAM_PORT) says which standard stream it carries.
//!
//! The host opens a connection for each stream of a process once the agent has answered the call that asked for the
//! process. It writes a [`StreamName`]; the agent answers with [`ACCEPTED`], and from then on the bytes are the
//! stream's. A name the agent does not wait for, or waits for no more, is answered with the end of the connection.

use std::fmt;

/// Bytes of a process's secret.
pub const SECRET_BYTES: usize = 16;

/// Bytes of a stream's name: a version, the stream's number, the secret.
pub const NAME_BYTES: usize = 2 + SECRET_BYTES;

/// The agent's answer to a name it has waited for.
pub const ACCEPTED: u8 = 0x06;

/// The first byte of a name.
const VERSION: u8 = 1;

/// A standard stream, by its number in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StandardStream {
    /// 0, from the host to the process.
    Stdin = 0,
    /// 1, from the process to the host. Of a terminal everything that it shows.
    Stdout = 1,
    /// 2, from the process to the host.
    Stderr = 2,
}

/// What nobody but the host and the agent knows of a process: who has it may take the process's streams.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Secret(pub [u8; SECRET_BYTES]);

/// The first bytes of a stream's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamName {
    /// Whose stream it is.
    pub secret: Secret,
    /// Which one.
    pub stream: StandardStream,
}

/// Bytes that are no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The first byte.
    #[error("a stream's name of version {0}, where {VERSION} is known")]
    Version(u8),
    /// The second byte.
    #[error("standard stream {0}, where there are 0, 1 and 2")]
    Stream(u8),
}

impl StreamName {
    /// As it is written to the connection.
    pub fn encode(&self) -> [u8; NAME_BYTES] {
        let mut bytes = [0; NAME_BYTES];
        bytes[0] = VERSION;
        bytes[1] = self.stream as u8;
        bytes[2..].copy_from_slice(&self.secret.0);
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8; NAME_BYTES]) -> Result<Self, NameError> {
        let [version, stream, secret @ ..] = *bytes;
        if version != VERSION {
            return Err(NameError::Version(version));
        }
        let stream = match stream {
            0 => StandardStream::Stdin,
            1 => StandardStream::Stdout,
            2 => StandardStream::Stderr,
            other => return Err(NameError::Stream(other)),
        };
        Ok(Self { secret: Secret(secret), stream })
    }
}

// Logs are read by others.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_are_one_name_or_none(mut bytes: [u8; NAME_BYTES], head in prop::option::of((0..3_u8, 0..5_u8))) {
            // Of all bytes hardly any are a name: half of the cases are near one.
            if let Some((version, stream)) = head {
                (bytes[0], bytes[1]) = (version, stream);
            }
            match StreamName::decode(&bytes) {
                Ok(name) => prop_assert_eq!(name.encode(), bytes),
                Err(NameError::Version(version)) => prop_assert!(version == bytes[0] && version != VERSION),
                Err(NameError::Stream(stream)) => prop_assert!(stream == bytes[1] && stream > 2),
            }
        }

        #[test]
        fn a_name_is_read_as_it_was_written(secret: [u8; SECRET_BYTES], number in 0..3_usize) {
            let stream = [StandardStream::Stdin, StandardStream::Stdout, StandardStream::Stderr][number];
            let name = StreamName { secret: Secret(secret), stream };
            prop_assert_eq!(StreamName::decode(&name.encode()), Ok(name));
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", Secret([0xab; SECRET_BYTES])).contains("ab"));
    }
}
