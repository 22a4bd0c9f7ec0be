//! Signals by name and number, and the signals that are forwarded to the container.

use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

/// The signals of x86-64 Linux under their names without `SIG`.
const NAMES: &[(&str, u32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("IOT", 6),
    ("POLL", 29),
    ("CLD", 17),
];

/// SIGKILL.
pub(super) const KILL: u32 = 9;
/// SIGTERM.
pub(super) const TERM: u32 = 15;

const FIRST_REALTIME: u32 = 34;
const LAST: u32 = 64;

/// The text is not a signal.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a signal; write a name such as TERM or SIGTERM, or a number from 1 to {LAST}")]
pub(super) struct UnknownSignal(String);

/// Parses `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+2`, `RTMAX-1`.
pub(super) fn parse(text: &str) -> Result<u32, UnknownSignal> {
    let unknown = || UnknownSignal(text.to_owned());
    if let Ok(number) = text.parse::<u32>() {
        return (1..=LAST).contains(&number).then_some(number).ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset =
        |text: &str| if text.is_empty() { Ok(0) } else { text.parse::<u32>().map_err(|_| unknown()) };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        FIRST_REALTIME.checked_add(offset(rest.strip_prefix('+').unwrap_or(rest))?)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        LAST.checked_sub(offset(rest.strip_prefix('-').unwrap_or(rest))?)
    } else {
        None
    };
    number.filter(|number| (FIRST_REALTIME..=LAST).contains(number)).ok_or_else(unknown)
}

/// Receives the signals that are forwarded, which no longer end this process.
pub(super) struct Forwarded {
    streams: Vec<(u32, Signal)>,
}

/// The signals that are forwarded. CHLD, PIPE and URG concern this process; TSTP and CONT stop and continue it as a
/// shell's job.
const FORWARDED: &[u32] = &[1, 2, 3, 10, 12, 14, 15, 28];

impl Forwarded {
    /// Installs the handlers.
    ///
    /// # Errors
    /// The kernel refuses a handler.
    pub(super) fn take_over() -> std::io::Result<Self> {
        let stream = |number: &u32| {
            let kind = SignalKind::from_raw(i32::try_from(*number).unwrap_or_default());
            signal(kind).map(|stream| (*number, stream))
        };
        Ok(Self { streams: FORWARDED.iter().map(stream).collect::<Result<_, _>>()? })
    }

    /// The next signal. Cancelling loses none.
    pub(super) async fn next(&mut self) -> u32 {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Whether a signal asks a program to end.
pub(super) fn asks_to_end(number: u32) -> bool {
    matches!(number, 1 | 2 | 3 | 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_in_every_spelling() {
        let table = [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigusr1", 10),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("RTMAX-1", 63),
            ("64", 64),
        ];
        for (text, number) in table {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "-9", "SIG", "FOO", "RTMIN+99", "RTMAX-99", "SIGSIGKILL"] {
            assert_eq!(parse(text), Err(UnknownSignal(text.to_owned())), "{text}");
        }
    }

    #[tokio::test]
    async fn a_signal_is_caught_and_named() {
        let mut forwarded = Forwarded::take_over().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::USR1).unwrap();
        assert_eq!(forwarded.next().await, 10);
    }
}
