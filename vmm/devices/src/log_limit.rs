//! A bound on what a guest can make us log: its faults are worth a line, not a million lines.

use std::time::Duration;
use std::time::Instant;

use parking_lot::Mutex;

/// Lines allowed in each period.
const LINES: u32 = 16;
const PERIOD: Duration = Duration::from_secs(60);

/// The lines of one place in the code. One process holds one microVM, so a static of this is per guest.
pub struct LogLimit(Mutex<Option<Window>>);

#[derive(Clone, Copy)]
struct Window {
    since: Instant,
    lines: u32,
}

impl LogLimit {
    /// No line so far.
    #[expect(clippy::new_without_default, reason = "made in statics, which need a const function")]
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether one more line may be written now.
    pub fn allows(&self) -> bool {
        self.allows_at(Instant::now())
    }

    fn allows_at(&self, now: Instant) -> bool {
        let mut window = self.0.lock();
        let current = window.filter(|w| now.saturating_duration_since(w.since) < PERIOD);
        let Window { since, lines } = current.unwrap_or(Window { since: now, lines: 0 });
        let allowed = lines < LINES;
        *window = Some(Window { since, lines: lines + u32::from(allowed) });
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_has_so_many_lines_and_the_next_as_many_again() {
        let limit = LogLimit::new();
        let start = Instant::now();
        let allowed = |at| (0..1000).filter(|_| limit.allows_at(at)).count();
        assert_eq!(allowed(start), LINES as usize);
        assert_eq!(allowed(start + PERIOD / 2), 0);
        assert_eq!(allowed(start + PERIOD), LINES as usize);
    }
}
