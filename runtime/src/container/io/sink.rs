//! Where output goes.

use std::io;
use std::path::Path;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use super::StdioError;
use super::StdioUri;
use super::fifo;
use super::fifo::Kept;
use super::log::LogSink;

/// An opened output.
pub(super) enum Sink {
    /// To be read and dropped.
    None,
    /// A client or its logging program reads it.
    Fifo(pipe::Sender),
    /// Appended as it comes.
    File(tokio::fs::File),
    /// Appended line by line.
    Log(LogSink),
}

impl Sink {
    /// Opens it, with the end of ours that keeps a fifo alive until the process has exited.
    pub(super) fn open(
        stream: &'static str,
        uri: &StdioUri,
        terminal: bool,
    ) -> Result<(Self, Option<Kept>), StdioError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StdioError::Open { stream, path, source }
        };
        match uri {
            StdioUri::None => Ok((Self::None, None)),
            StdioUri::Path(path) if fifo::is_fifo(path).map_err(failed(path))? => {
                let (sender, kept) = fifo::output(path).map_err(failed(path))?;
                Ok((Self::Fifo(sender), Some(kept)))
            }
            // An existing file or device: never made here, a mistyped fifo would become one.
            StdioUri::Path(path) => Ok((Self::File(append(path, false).map_err(failed(path))?), None)),
            StdioUri::File(path) => Ok((Self::File(append(path, true).map_err(failed(path))?), None)),
            StdioUri::Log(path) => {
                let file = append(path, true).map_err(failed(path))?;
                Ok((Self::Log(LogSink::new(file, stream, terminal)), None))
            }
            // Its pipe is opened when the program is started.
            StdioUri::Program { .. } => Ok((Self::None, None)),
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Fifo(sender) => sender.write_all(bytes).await,
            Self::File(file) => file.write_all(bytes).await,
            Self::Log(log) => log.write(bytes).await,
        }
    }

    /// Hands on what is still held back.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::None | Self::Fifo(_) => Ok(()),
            Self::File(file) => file.flush().await,
            Self::Log(log) => log.finish().await,
        }
    }
}

fn append(path: &Path, create: bool) -> io::Result<tokio::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent().filter(|_| create) {
        std::fs::create_dir_all(parent)?;
    }
    let mut options = std::fs::File::options();
    options.append(true).create(create).mode(0o640);
    Ok(options.open(path)?.into())
}
