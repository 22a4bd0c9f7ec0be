//! `--restart`: whether and when a container that has ended is started again, by docker's rules. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

/// The policy of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// It is not started again.
    #[default]
    No,
    /// It is started again after a failure.
    OnFailure {
        /// Most times in a row; `None` for any number.
        most: Option<u32>,
    },
    /// It is started again, unless a command stopped it.
    Always,
    /// The same: they differ after a restart of docker's daemon, and there is none.
    UnlessStopped,
}

/// The text is not a policy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a restart policy; write no, always, unless-stopped, on-failure or on-failure:TIMES")]
pub struct BadPolicy(String);

/// The first delay; each further one is twice as long.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A container that ran for so long has not failed in a row with its last start.
const RAN_WELL: Duration = Duration::from_secs(10);

impl RestartPolicy {
    /// Whether a container that has ended with `code` after `restarts` restarts in a row is started again.
    pub fn wants(self, code: u32, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure { most } => code != 0 && most.is_none_or(|most| restarts < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

/// The delay before a restart.
pub fn delay(restarts: u32) -> Duration {
    2_u32.checked_pow(restarts).map_or(LONGEST_DELAY, |factor| {
        FIRST_DELAY.checked_mul(factor).unwrap_or(LONGEST_DELAY).min(LONGEST_DELAY)
    })
}

/// The number of restarts in a row, counted on or from the beginning.
pub fn in_a_row(restarts: u32, ran: Duration) -> u32 {
    if ran >= RAN_WELL { 0 } else { restarts }
}

impl FromStr for RestartPolicy {
    type Err = BadPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "no" | "" => Ok(Self::No),
            "always" => Ok(Self::Always),
            "unless-stopped" => Ok(Self::UnlessStopped),
            "on-failure" => Ok(Self::OnFailure { most: None }),
            _ => {
                let most = text.strip_prefix("on-failure:").and_then(|most| most.parse().ok());
                match most.ok_or_else(|| BadPolicy(text.to_owned()))? {
                    0 => Ok(Self::OnFailure { most: None }),
                    most => Ok(Self::OnFailure { most: Some(most) }),
                }
            }
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => out.write_str("no"),
            Self::Always => out.write_str("always"),
            Self::UnlessStopped => out.write_str("unless-stopped"),
            Self::OnFailure { most: None } => out.write_str("on-failure"),
            Self::OnFailure { most: Some(most) } => write!(out, "on-failure:{most}"),
        }
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = BadPolicy;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_decide_as_dockers_do() {
        let table = [
            ("no", 1, 0, false),
            ("always", 0, 9, true),
            ("unless-stopped", 1, 9, true),
            ("on-failure", 0, 0, false),
            ("on-failure", 1, 99, true),
            ("on-failure:2", 1, 1, true),
            ("on-failure:2", 1, 2, false),
        ];
        for (text, code, restarts, wanted) in table {
            let policy: RestartPolicy = text.parse().unwrap();
            assert_eq!(policy.wants(code, restarts), wanted, "{text}");
            assert_eq!(policy.to_string(), text);
        }
        for text in ["never", "on-failure:", "on-failure:-1", "always:3"] {
            assert_eq!(text.parse::<RestartPolicy>(), Err(BadPolicy(text.to_owned())));
        }
    }

    #[test]
    fn delays_grow_up_to_a_minute() {
        assert_eq!(delay(0), Duration::from_millis(100));
        assert_eq!(delay(3), Duration::from_millis(800));
        assert_eq!(delay(10), LONGEST_DELAY);
        assert_eq!(delay(u32::MAX), LONGEST_DELAY);
        assert_eq!(in_a_row(4, Duration::from_secs(9)), 4);
        assert_eq!(in_a_row(4, Duration::from_secs(10)), 0);
    }
}
