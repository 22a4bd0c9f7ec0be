//! Names of CDI devices: `vendor.com/class=name` (SPEC.md "kind" and "device name"). Pure.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

/// The qualified name of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName {
    /// The kind, `vendor.com/class`.
    pub(super) kind: String,
    /// The device's name, unique within its kind.
    pub(super) device: String,
}

/// The text is not the name of a CDI device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not the name of a CDI device; write VENDOR/CLASS=NAME, like vendor.com/device=0")]
pub struct ParseNameError(String);

/// Letters, digits and some of `marks` in between; a letter first, a letter or digit last.
fn is_word(text: &str, marks: &str, digit_first: bool) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || (digit_first && c.is_ascii_digit());
    text.starts_with(first)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
}

/// Whether a text has the form `vendor.com/class`.
pub(super) fn is_kind(text: &str) -> bool {
    text.split_once('/')
        .is_some_and(|(vendor, class)| is_word(vendor, "_-.", false) && is_word(class, "_-", false))
}

/// Whether a text is valid after the `=`.
pub(super) fn is_device(text: &str) -> bool {
    is_word(text, "_-.:", true)
}

impl FromStr for DeviceName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((kind, device)) if is_kind(kind) && is_device(device) => {
                Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
            }
            _ => Err(ParseNameError(text.chars().take(128).collect())),
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = ParseNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}
