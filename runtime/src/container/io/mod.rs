//! Standard streams: containerd's URIs on one side, vsock streams on the other, bytes copied between.
//!
//! No end ever blocks a thread, end of file crosses both ways, and a slow reader slows the guest's writer down
//! (full pipe -> unread stream -> no vsock credit). What the process itself wrote is delivered whole before its exit
//! is reported, unless nobody reads it.

mod copy;
mod fifo;
mod log;
mod logger;
mod sink;
mod streams;
#[cfg(test)]
mod tests;
mod uri;

pub use logger::LOGGER_NAME;
pub use logger::become_logger;
pub use streams::Streams;
pub use streams::Written;
pub use uri::StdioUri;
pub use uri::Uris;

use std::io;
use std::path::PathBuf;

use crate::agent::StreamError;

/// A standard stream that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// Not a form we know.
    #[error(
        "{stream} {uri:?}: expected a path, file:///PATH, binary:///PROGRAM?NAME=VALUE or kiai-log:///PATH"
    )]
    Uri {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// As it was given.
        uri: String,
    },
    /// The system refused.
    #[error("{stream} {path}")]
    Open {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A logging program cannot be started, or is not ready in time.
    #[error("{stream}: logging program {path}")]
    Logger {
        /// stdout or stderr.
        stream: &'static str,
        /// The program.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The kernel has no random numbers.
    #[error("make a secret for the standard streams")]
    Secret(#[source] io::Error),
    /// The connection to the agent fails.
    #[error("connect {stream}")]
    Connect {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The reason.
        #[source]
        source: StreamError,
    },
}
