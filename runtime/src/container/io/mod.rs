//! Standard streams: containerd's URIs on one side, vsock streams on the other, bytes copied between.
//!
//! No end ever blocks a thread, end of file crosses both ways, and a slow reader slows the guest's writer down
//! (full pipe -> unread stream -> no vsock credit). What the process wrote is handed on whole before its exit is
//! told, unless nobody reads it.

mod copy;
mod fifo;
mod log;
mod sink;
mod streams;
#[cfg(test)]
mod tests;
mod uri;

pub use streams::PortNumbers;
pub use streams::Streams;
pub use uri::StdioUri;
pub use uri::Uris;

use std::io;
use std::path::PathBuf;

/// A standard stream that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// Not a form we know.
    #[error("{stream} {uri:?}: expected a path, file:///path or kiai-log:///path")]
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
    /// No vsock port.
    #[error("{stream}: {source}")]
    Port {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The reason.
        source: kiai_vmm::vsock::PortInUse,
    },
}
