//! How a test says that it cannot run here. The harness knows only "passed" and "failed", and what does not run
//! passes; so each test that returns early leaves a line that the runner of the tests counts.

use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;

/// Names the file that [`skip`] writes to: JSON lines, one for each test that did not run.
pub const SKIPS: &str = "KIAI_SKIPS";

/// Says that the test on this thread cannot run here, and why; the test returns after it. Writes one line to
/// standard error, and `{"test": …, "reason": …}` with a newline to the end of the file that [`SKIPS`] names, if it
/// does.
///
/// Call it on the test's own thread, whose name is the test's.
///
/// # Panics
///
/// If that file cannot be written: a skip that is not counted is what this is here to prevent.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test without a name");
    eprintln!("skipped: {test}: {reason}");
    if let Some(path) = std::env::var_os(SKIPS) {
        let path = Path::new(&path);
        if let Err(error) = append(path, test, reason) {
            panic!("{SKIPS}={}: {error}", path.display());
        }
    }
}

fn append(path: &Path, test: &str, reason: &str) -> io::Result<()> {
    let line = format!("{}\n", serde_json::json!({ "test": test, "reason": reason }));
    // In one call: tests of several processes write to it at the same time.
    File::options().append(true).create(true).open(path)?.write_all(line.as_bytes())
}
