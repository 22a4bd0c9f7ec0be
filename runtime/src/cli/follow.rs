//! Follows a file that another process appends to, with inotify(7); nothing is polled.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::path::Path;

use rustix::fs::inotify;
use tokio::net::unix::pipe::Receiver;

/// A growing file with the position up to which it was read.
pub(super) struct Growing {
    file: File,
    /// The inotify descriptor.
    watch: Receiver,
}

impl Growing {
    /// Opens a file to be followed from its beginning, or from where `file` was read to.
    ///
    /// # Errors
    /// The file cannot be read or watched.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::continued(File::open(path)?, path)
    }

    /// Follows a file from its current position.
    ///
    /// # Errors
    /// The file cannot be watched.
    pub(super) fn continued(file: File, path: &Path) -> io::Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, path, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CLOSE_WRITE)?;
        Ok(Self { file, watch: Receiver::from_owned_fd_unchecked(watch)? })
    }

    /// Reads the bytes that were appended; empty if there are none.
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
        // The writer may be faster: read a bounded amount.
        let mut added = vec![0; 256 << 10];
        let length = self.file.read(&mut added)?;
        added.truncate(length);
        Ok(added)
    }

    /// Goes back to the beginning if the writer has emptied the file.
    pub(super) fn begin_anew_if_emptied(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() < self.file.stream_position()? {
            self.file.rewind()?;
        }
        Ok(())
    }

    /// Returns when bytes may have been appended since the last call. Cancelling loses nothing.
    pub(super) async fn changed(&self) -> io::Result<()> {
        self.watch.readable().await?;
        let mut events = [0; 4096];
        loop {
            match self.watch.try_read(&mut events) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn what_is_appended_is_seen() {
        let temporary = tempfile::NamedTempFile::new().unwrap();
        let mut growing = Growing::open(temporary.path()).unwrap();
        assert_eq!(growing.read().unwrap(), b"");
        let mut writer = temporary.reopen().unwrap();
        for text in [&b"one"[..], b"two"] {
            writer.write_all(text).unwrap();
            growing.changed().await.unwrap();
            assert_eq!(growing.read().unwrap(), text);
        }
    }
}
