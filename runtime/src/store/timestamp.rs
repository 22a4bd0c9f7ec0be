//! Timestamps in the format of containerd: RFC 3339 with nanoseconds, in UTC. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde::Serialize;

/// A timestamp in nanoseconds since 1970-01-01T00:00:00Z; the years 1970 to 9999 can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp {
    nanoseconds: u128,
}

/// The text is not a timestamp.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a time; write for instance 2026-01-31T12:00:00Z")]
pub struct BadTimestamp(String);

const SECOND: u128 = 1_000_000_000;
const DAY: u64 = 86_400;

/// Days since 1970-01-01 of a date of the Gregorian calendar, counted from 1 March so that the leap day is
/// the last of its year.
fn days_of(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

/// The inverse of [`days_of`] for days from 1970 on.
fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

impl Timestamp {
    /// The current time.
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// Converts a timestamp of protobuf; a time before 1970 becomes 1970.
    pub fn from_parts(seconds: i64, nanoseconds: i32) -> Self {
        let seconds = u128::try_from(seconds).unwrap_or(0);
        let nanoseconds = u128::try_from(nanoseconds).unwrap_or(0).min(SECOND - 1);
        Self { nanoseconds: seconds * SECOND + nanoseconds }
    }

    /// The timestamp minus a duration.
    pub fn before_now(duration: Duration) -> Self {
        let now = Self::now();
        Self { nanoseconds: now.nanoseconds.saturating_sub(duration.as_nanos()) }
    }

    /// Nanoseconds since 1970.
    pub fn nanoseconds(self) -> u128 {
        self.nanoseconds
    }

    /// The duration from now to this timestamp; zero for a timestamp in the past.
    pub fn remaining(self) -> Duration {
        let nanoseconds = self.nanoseconds.saturating_sub(Self::now().nanoseconds);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// The duration from this timestamp to now; zero for a timestamp in the future.
    pub fn elapsed(self) -> Duration {
        let nanoseconds = Self::now().nanoseconds.saturating_sub(self.nanoseconds);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let nanoseconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        Self { nanoseconds }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = u64::try_from(self.nanoseconds / SECOND).unwrap_or(u64::MAX);
        let (year, month, day) = date_of(seconds / DAY);
        let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
        let fraction = self.nanoseconds % SECOND;
        write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
    }
}

impl From<Timestamp> for String {
    fn from(timestamp: Timestamp) -> Self {
        timestamp.to_string()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = BadTimestamp;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Timestamp {
    type Err = BadTimestamp;

    /// Reads RFC 3339, any number of fraction digits, `Z` or an offset. A date alone is its midnight in UTC.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| BadTimestamp(text.to_owned()))
    }
}

fn number(text: &str, digits: usize, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    let well_formed = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = well_formed.then(|| text.parse::<u32>().ok())??;
    range.contains(&value).then_some(value)
}

fn parse(text: &str) -> Option<Timestamp> {
    if !text.is_ascii() {
        return None;
    }
    let (date, time) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let mut date = date.splitn(3, '-');
    let year = number(date.next()?, 4, 1970..=9999)?;
    let month = number(date.next()?, 2, 1..=12)?;
    let day = number(date.next()?, 2, 1..=31)?;
    let days = days_of(year.into(), month, day);
    let time = time.unwrap_or("00:00:00Z");
    let zone = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(zone);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':');
    let hour = number(clock.next()?, 2, 0..=23)?;
    let minute = number(clock.next()?, 2, 0..=59)?;
    // SystemTime has no leap seconds: one counts as the last second of its minute.
    let second = number(clock.next()?, 2, 0..=60)?.min(59);
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let offset = i64::from(number(hours, 2, 0..=23)? * 3600 + number(minutes, 2, 0..=59)? * 60);
            if zone.starts_with('-') { -offset } else { offset }
        }
    };
    let seconds = days * i64::try_from(DAY).ok()? + i64::from(hour * 3600 + minute * 60 + second) - offset;
    let nanoseconds = u128::try_from(seconds).ok()? * SECOND + fraction.parse::<u128>().ok()?;
    Some(Timestamp { nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_and_read_back() {
        let table = [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 5, "2000-02-28T23:59:59.000000005Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199, 999_999_999, "2024-02-29T23:59:59.999999999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ];
        for (seconds, nanoseconds, text) in table {
            let timestamp = Timestamp::from_parts(seconds, nanoseconds);
            assert_eq!(timestamp.to_string(), text);
            assert_eq!(text.parse(), Ok(timestamp));
        }
    }

    #[test]
    fn other_spellings_are_read() {
        let noon = "2026-01-31T12:00:00.5Z".parse::<Timestamp>().unwrap();
        for text in [
            "2026-01-31T13:30:00.500+01:30",
            "2026-01-31 07:00:00.5-05:00",
            "2026-01-31t12:00:00.5000000009z",
        ] {
            assert_eq!(text.parse(), Ok(noon), "{text}");
        }
        assert_eq!("2026-01-31".parse::<Timestamp>(), "2026-01-31T00:00:00Z".parse());
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "now",
            "2026-13-01",
            "2026-1-1",
            "2026-01-31T12:00:00",
            "2026-01-31T25:00:00Z",
            "1969-01-01",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00+1",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(BadTimestamp(text.to_owned())), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_moment_survives_its_text(seconds in 0_i64..253_402_300_799, nanoseconds in 0..1_000_000_000) {
            let timestamp = Timestamp::from_parts(seconds, nanoseconds);
            assert_eq!(timestamp.to_string().parse(), Ok(timestamp));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Timestamp>();
        }
    }
}
