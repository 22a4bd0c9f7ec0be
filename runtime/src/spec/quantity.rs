//! Amounts people write on a command line: `256m` of memory, `1.5` CPUs. Pure.

use std::fmt;
use std::str::FromStr;

/// An amount of memory, bytes. Written as a whole number with an optional unit `b`, `k`, `m`, `g` or `t`
/// (powers of 1024; a trailing `b` or `ib` is accepted, case does not matter).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(pub u64);

/// Why a text is no amount.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QuantityError {
    /// Not a number with a known unit.
    #[error("{0:?} is not an amount of memory; write for instance 512m or 2g")]
    Memory(String),
    /// The number does not fit.
    #[error("{0:?} is more than can be counted")]
    TooLarge(String),
    /// Less than a container can start with.
    #[error("{0:?} is too little memory for a container: the least is 6m")]
    TooSmall(String),
    /// Not a positive decimal.
    #[error("{0:?} is not a number of CPUs; write for instance 2 or 0.5")]
    Cpus(String),
}

/// The least memory limit, as docker has it: below it not even the process that starts the container fits.
const LEAST_MEMORY: u64 = 6 << 20;

/// Parses an amount of bytes.
///
/// # Errors
/// The text is not a whole number followed by a unit, or does not fit 63 bits.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = lower.split_at(digits);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(QuantityError::Memory(text.to_owned())),
    };
    if number.is_empty() {
        return Err(QuantityError::Memory(text.to_owned()));
    }
    let too_large = || QuantityError::TooLarge(text.to_owned());
    let number: u64 = number.parse().map_err(|_| too_large())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(too_large)?;
    if i64::try_from(bytes).is_err() {
        return Err(too_large());
    }
    Ok(bytes)
}

impl FromStr for MemorySize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match parse_bytes(text)? {
            bytes if bytes < LEAST_MEMORY => Err(QuantityError::TooSmall(text.to_owned())),
            bytes => Ok(Self(bytes)),
        }
    }
}

/// A share of CPU time in thousandths of a CPU, at least 10.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus {
    millis: u32,
}

/// The CFS period docker uses, microseconds.
const PERIOD_US: u64 = 100_000;

impl Cpus {
    /// CPU time per [`Cpus::period_us`], microseconds.
    pub fn quota_us(self) -> i64 {
        i64::from(self.millis) * (PERIOD_US as i64) / 1000
    }

    /// The period quotas are counted in, microseconds.
    pub fn period_us(self) -> u64 {
        PERIOD_US
    }

    /// Number of vCPUs that a sandbox needs for this CPU time, unless it is more than 64.
    pub fn vcpus(self) -> Option<u8> {
        u8::try_from(self.millis.div_ceil(1000)).ok().filter(|vcpus| *vcpus <= 64)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{:03}", self.millis / 1000, self.millis % 1000)
    }
}

impl FromStr for Cpus {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || QuantityError::Cpus(text.to_owned());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || whole.is_empty() && fraction.is_empty() {
            return Err(bad());
        }
        let whole: u32 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
        let padded: String = fraction.chars().chain("000".chars()).take(3).collect();
        let thousandths: u32 = padded.parse().map_err(|_| bad())?;
        let millis =
            whole.checked_mul(1000).and_then(|millis| millis.checked_add(thousandths)).ok_or_else(bad)?;
        if millis < 10 {
            return Err(bad());
        }
        Ok(Self { millis })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_every_unit() {
        let table = [
            ("6291456", 6 << 20),
            ("8192k", 8 << 20),
            ("256m", 256 << 20),
            ("256M", 256 << 20),
            ("256MB", 256 << 20),
            ("256MiB", 256 << 20),
            ("1g", 1 << 30),
            ("2t", 2 << 40),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse(), Ok(MemorySize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_memory_is_refused_by_name() {
        for text in ["", "m", "-1m", "1.5g", "12q", "0x10", " m"] {
            assert_eq!(text.parse::<MemorySize>(), Err(QuantityError::Memory(text.to_owned())), "{text}");
        }
        for text in ["99999999999999999999", "9223372036854775808", "18014398509481984k"] {
            assert_eq!(text.parse::<MemorySize>(), Err(QuantityError::TooLarge(text.to_owned())), "{text}");
        }
        assert_eq!("5m".parse::<MemorySize>(), Err(QuantityError::TooSmall("5m".to_owned())));
    }

    #[test]
    fn cpus_become_quota_and_vcpus() {
        let table = [
            ("1", 100_000, Some(1)),
            ("1.5", 150_000, Some(2)),
            ("0.01", 1_000, Some(1)),
            (".25", 25_000, Some(1)),
            ("2.", 200_000, Some(2)),
            ("0.12345", 12_300, Some(1)),
            ("64", 6_400_000, Some(64)),
            ("64.001", 6_400_100, None),
        ];
        for (text, quota, vcpus) in table {
            let cpus: Cpus = text.parse().unwrap();
            assert_eq!((cpus.quota_us(), cpus.vcpus()), (quota, vcpus), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_of_cpus_is_refused() {
        for text in ["", ".", "0", "0.001", "-1", "1e3", "one", "99999999999"] {
            assert_eq!(text.parse::<Cpus>(), Err(QuantityError::Cpus(text.to_owned())), "{text}");
        }
    }
}
