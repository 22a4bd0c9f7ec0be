//! What a process writes, read as it comes: to wait for a line, or for the end.

use std::io::Read;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::time::Instant;

/// The output so far, filled by a thread.
#[derive(Clone)]
pub struct Stream(Arc<(Mutex<Output>, Condvar)>);

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    /// Reads `source` to its end on a thread of its own.
    pub fn of(mut source: impl Read + Send + 'static) -> Stream {
        let stream = Stream(Arc::default());
        let filled = stream.clone();
        std::thread::spawn(move || {
            let mut chunk = vec![0; 1 << 16];
            // The end of a terminal is an error (EIO).
            while let Ok(count @ 1..) = source.read(&mut chunk) {
                filled.0.0.lock().unwrap().bytes.extend(&chunk[..count]);
                filled.0.1.notify_all();
            }
            filled.0.0.lock().unwrap().ended = true;
            filled.0.1.notify_all();
        });
        stream
    }

    /// Waits until `text` has been written; all output up to then. Panics at the deadline and at the end.
    pub fn until(&self, text: &str, deadline: Instant) -> String {
        let found = |output: &Output| contains(&output.bytes, text.as_bytes());
        let output = self.wait(deadline, |output| found(output) || output.ended);
        assert!(contains(&output, text.as_bytes()), "no {text:?} in {:?}", String::from_utf8_lossy(&output));
        String::from_utf8_lossy(&output).into_owned()
    }

    /// Waits for the end; all output. If something keeps the stream open past the deadline, what has come.
    pub fn to_end(&self, deadline: Instant) -> Vec<u8> {
        self.wait(deadline, |output| output.ended)
    }

    fn wait(&self, deadline: Instant, enough: impl Fn(&Output) -> bool) -> Vec<u8> {
        let (output, more) = &*self.0;
        let left = deadline.saturating_duration_since(Instant::now());
        let (output, _) = more.wait_timeout_while(output.lock().unwrap(), left, |o| !enough(o)).unwrap();
        output.bytes.clone()
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
