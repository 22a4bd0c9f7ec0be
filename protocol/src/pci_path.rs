//! A PCI path: how the host locates a PCI function for the agent, from the root bus.
//!
//! The guest's kernel assigns bus numbers, which the host does not know; slot and function at each step do not change
//! (PCI Local Bus 3.0 §3.2.2.3.2: 5 bits of device, 3 bits of function).

use std::fmt;
use std::str::FromStr;

/// The slot (device number) and function number on one bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotFunction {
    slot: u8,
    function: u8,
}

/// Why a text is not a PCI path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("PCI path {text:?}: {reason}")]
pub struct ParsePciPathError {
    text: String,
    reason: &'static str,
}

impl SlotFunction {
    /// `None` unless `slot` is 0..=31 and `function` is 0..=7.
    pub fn new(slot: u8, function: u8) -> Option<Self> {
        (slot < 32 && function < 8).then_some(Self { slot, function })
    }

    /// Device number on its bus, 0..=31.
    pub fn slot(self) -> u8 {
        self.slot
    }

    /// Function number, 0..=7.
    pub fn function(self) -> u8 {
        self.function
    }
}

impl fmt::Display for SlotFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.slot, self.function)
    }
}

/// One or more steps from the root bus; every step except the last is a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PciPath(Vec<SlotFunction>);

impl PciPath {
    /// The path of a function on the root bus.
    pub fn on_root_bus(at: SlotFunction) -> Self {
        Self(vec![at])
    }

    /// The steps, at least one.
    pub fn steps(&self) -> &[SlotFunction] {
        &self.0
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("/")?;
            }
            write!(f, "{step}")?;
        }
        Ok(())
    }
}

impl FromStr for PciPath {
    type Err = ParsePciPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |reason| ParsePciPathError { text: text.chars().take(64).collect(), reason };
        let mut steps = Vec::new();
        for part in text.split('/') {
            if steps.len() == 8 {
                return Err(error("more than eight steps"));
            }
            let (slot, function) = part.split_once('.').ok_or_else(|| error("a step is not SS.F"))?;
            let number = |digits: &str, most| {
                let hex = !digits.is_empty() && digits.len() <= most;
                (hex && digits.bytes().all(|b| b.is_ascii_hexdigit()))
                    .then(|| u8::from_str_radix(digits, 16).ok())
                    .flatten()
            };
            let step = number(slot, 2)
                .zip(number(function, 1))
                .and_then(|(slot, function)| SlotFunction::new(slot, function))
                .ok_or_else(|| error("slot is not 0-1f or function not 0-7"))?;
            steps.push(step);
        }
        Ok(Self(steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_paths_are_refused() {
        for text in ["", "/", "1", "20.0", "1f.8", "01.0/", "01.0//02.0", "+1.0", "0001.0", "1.0 "] {
            assert!(text.parse::<PciPath>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(steps in prop::collection::vec((0u8..32, 0u8..8), 1..8)) {
            let path = PciPath(steps.iter().map(|&(s, f)| SlotFunction { slot: s, function: f }).collect());
            prop_assert_eq!(path.to_string().parse::<PciPath>().unwrap(), path);
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_panic(text in ".*") {
            let _ = text.parse::<PciPath>();
        }
    }
}
