//! The guest's console output: the last of it kept for whoever asks why a guest died, all of it passed on if
//! somebody listens.

use std::collections::VecDeque;
use std::io;
use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;

/// Bytes kept. A kernel panic with its registers and call trace is under 8 KiB.
const KEPT: usize = 64 << 10;

/// Shared by the serial port, which writes, and the handle, which reads.
#[derive(Clone)]
pub(crate) struct Console(Arc<Mutex<Kept>>);

struct Kept {
    last: VecDeque<u8>,
    listener: Option<Box<dyn Write + Send>>,
}

impl Console {
    pub(crate) fn new(listener: Option<Box<dyn Write + Send>>) -> Self {
        Self(Arc::new(Mutex::new(Kept { last: VecDeque::new(), listener })))
    }

    /// The last 64 KiB, as text.
    pub(crate) fn tail(&self) -> String {
        let mut kept = self.0.lock();
        String::from_utf8_lossy(kept.last.make_contiguous()).into_owned()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock();
        let recent = &bytes[bytes.len().saturating_sub(KEPT)..];
        let excess = (kept.last.len() + recent.len()).saturating_sub(KEPT);
        kept.last.drain(..excess);
        kept.last.extend(recent);
        // A listener that fails is gone for good: the guest must not wait for it, nor log about it.
        if kept.listener.as_mut().is_some_and(|l| l.write_all(bytes).and_then(|()| l.flush()).is_err()) {
            kept.listener = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_64_kib() {
        let mut console = Console::new(None);
        for i in 0..20_000 {
            writeln!(console, "{i:06}").unwrap();
        }
        console.write_all(&vec![b'x'; KEPT - 7]).unwrap();
        assert_eq!(console.tail().len(), KEPT);
        assert!(console.tail().starts_with("019999\nxx"));
        console.write_all(&vec![b'y'; 3 * KEPT]).unwrap();
        assert_eq!(console.tail(), "y".repeat(KEPT));
    }

    #[test]
    fn a_broken_listener_does_not_stop_the_guest() {
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(reader);
        let mut console = Console::new(Some(Box::new(writer)));
        console.write_all(b"one").unwrap();
        console.write_all(b"two").unwrap();
        assert_eq!(console.tail(), "onetwo");
    }
}
