//! Prints lists: aligned columns for people, JSON for programs.

use std::io;
use std::io::Write;
use std::time::Duration;

use serde::Serialize;

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// Aligned columns with a heading.
    #[default]
    Table,
    /// One JSON array.
    Json,
}

/// Writes to standard output; a closed pipe ends the command without an error.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes a value as indented JSON.
pub(super) fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    Ok(print(&format!("{}\n", serde_json::to_string_pretty(value)?))?)
}

/// Columns as wide as their widest word, three spaces between.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|word| word.len()).collect();
    for row in rows {
        for (width, word) in widths.iter_mut().zip(row) {
            *width = (*width).max(word.chars().count());
        }
    }
    let line = |words: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (word, width) in words.zip(&widths) {
            line.push_str(&format!("{word:width$}   "));
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&mut heading.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// A time span in its largest unit: `5 minutes`.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (amount, unit) = match seconds {
        0 => return "less than a second".to_owned(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{amount} {unit}{}", if amount == 1 { "" } else { "s" })
}

/// An amount of bytes with one digit after the point: `12.5 MiB`.
pub(super) fn bytes(amount: u64) -> String {
    let mut amount = amount as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{amount:.digits$} {unit}");
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} TiB")
}

/// At most `most` characters, the last being an ellipsis if something was left out.
pub(super) fn shorten(text: &str, most: usize) -> String {
    // A cell is one line, whatever the text contains.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most.saturating_sub(1)).chain(std::iter::once('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), "long word".into()], vec!["bcdef".into(), String::new()]];
        assert_eq!(table(&["ID", "NAME"], &rows), "ID      NAME\na       long word\nbcdef\n");
    }

    #[test]
    fn amounts_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(13_107_200), "12.5 MiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(span(Duration::from_secs(61)), "1 minute");
        assert_eq!(span(Duration::from_secs(90_000 * 2)), "2 days");
        assert_eq!(shorten("ab\ncdef", 4), "ab …");
    }
}
