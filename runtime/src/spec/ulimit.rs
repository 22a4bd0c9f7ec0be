//! `--ulimit NAME=SOFT[:HARD]` and the limits a container has without it. Pure.

use std::str::FromStr;

use oci_spec::runtime::PosixRlimit;
use oci_spec::runtime::PosixRlimitBuilder;
use oci_spec::runtime::PosixRlimitType;

/// One resource limit. `u64::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    /// Which resource.
    pub resource: PosixRlimitType,
    /// In force at start.
    pub soft: u64,
    /// Hard limit, the maximum to which the process may raise the soft limit.
    pub hard: u64,
}

/// Why a text is no resource limit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UlimitError {
    /// Not of the form `NAME=SOFT[:HARD]`.
    #[error(
        "{0:?} is not a resource limit; write NAME=SOFT or NAME=SOFT:HARD, for instance nofile=1024:4096"
    )]
    Form(String),
    /// No such resource.
    #[error("{0:?} is not a resource that has a limit")]
    Resource(String),
    /// The soft limit is over the hard one.
    #[error("{0:?}: the soft limit is higher than the hard limit")]
    Order(String),
}

/// The names of setrlimit(2) in the form the shell's `ulimit` made common.
const RESOURCES: &[(&str, PosixRlimitType)] = &[
    ("as", PosixRlimitType::RlimitAs),
    ("core", PosixRlimitType::RlimitCore),
    ("cpu", PosixRlimitType::RlimitCpu),
    ("data", PosixRlimitType::RlimitData),
    ("fsize", PosixRlimitType::RlimitFsize),
    ("locks", PosixRlimitType::RlimitLocks),
    ("memlock", PosixRlimitType::RlimitMemlock),
    ("msgqueue", PosixRlimitType::RlimitMsgqueue),
    ("nice", PosixRlimitType::RlimitNice),
    ("nofile", PosixRlimitType::RlimitNofile),
    ("nproc", PosixRlimitType::RlimitNproc),
    ("rss", PosixRlimitType::RlimitRss),
    ("rtprio", PosixRlimitType::RlimitRtprio),
    ("rttime", PosixRlimitType::RlimitRttime),
    ("sigpending", PosixRlimitType::RlimitSigpending),
    ("stack", PosixRlimitType::RlimitStack),
];

impl FromStr for Ulimit {
    type Err = UlimitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || UlimitError::Form(text.to_owned());
        let (name, limits) = text.split_once('=').ok_or_else(form)?;
        let (_, resource) = RESOURCES
            .iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| UlimitError::Resource(name.to_owned()))?;
        let amount = |word: &str| match word {
            "-1" | "unlimited" => Ok(u64::MAX),
            _ => word.parse::<u64>().map_err(|_| form()),
        };
        let (soft, hard) = match limits.split_once(':') {
            Some((soft, hard)) => (amount(soft)?, amount(hard)?),
            None => (amount(limits)?, amount(limits)?),
        };
        if soft > hard {
            return Err(UlimitError::Order(text.to_owned()));
        }
        Ok(Self { resource: *resource, soft, hard })
    }
}

/// Default limit of open files: a soft limit that works with select(2), and a higher hard limit.
const NOFILE: Ulimit = Ulimit { resource: PosixRlimitType::RlimitNofile, soft: 1024, hard: 524_288 };

/// The limits of the process: the defaults with the user's laid over them, the last of a resource counting.
pub(crate) fn plan_rlimits(ulimits: &[Ulimit]) -> Vec<PosixRlimit> {
    let mut planned = vec![NOFILE];
    for ulimit in ulimits {
        match planned.iter_mut().find(|known| known.resource == ulimit.resource) {
            Some(known) => *known = *ulimit,
            None => planned.push(*ulimit),
        }
    }
    planned
        .iter()
        .map(|limit| {
            PosixRlimitBuilder::default()
                .typ(limit.resource)
                .soft(limit.soft)
                .hard(limit.hard)
                .build()
                .expect("every field of a resource limit is set")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_with_and_without_a_hard_one() {
        let nofile = PosixRlimitType::RlimitNofile;
        let table = [
            ("nofile=10", Ulimit { resource: nofile, soft: 10, hard: 10 }),
            ("nofile=10:20", Ulimit { resource: nofile, soft: 10, hard: 20 }),
            ("core=0:-1", Ulimit { resource: PosixRlimitType::RlimitCore, soft: 0, hard: u64::MAX }),
            (
                "stack=unlimited",
                Ulimit { resource: PosixRlimitType::RlimitStack, soft: u64::MAX, hard: u64::MAX },
            ),
        ];
        for (text, ulimit) in table {
            assert_eq!(text.parse(), Ok(ulimit), "{text}");
        }
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        assert_eq!("nofile".parse::<Ulimit>(), Err(UlimitError::Form("nofile".into())));
        assert_eq!("nofile=x".parse::<Ulimit>(), Err(UlimitError::Form("nofile=x".into())));
        assert_eq!("nofile=1:".parse::<Ulimit>(), Err(UlimitError::Form("nofile=1:".into())));
        assert_eq!("files=1".parse::<Ulimit>(), Err(UlimitError::Resource("files".into())));
        assert_eq!("nofile=2:1".parse::<Ulimit>(), Err(UlimitError::Order("nofile=2:1".into())));
    }

    #[test]
    fn the_last_limit_of_a_resource_counts() {
        let ulimits: Vec<Ulimit> =
            ["nofile=1:2", "nproc=7", "nofile=3:4"].iter().map(|text| text.parse().unwrap()).collect();
        let planned: Vec<_> =
            plan_rlimits(&ulimits).iter().map(|limit| (limit.typ(), limit.soft(), limit.hard())).collect();
        let expected = vec![(PosixRlimitType::RlimitNofile, 3, 4), (PosixRlimitType::RlimitNproc, 7, 7)];
        assert_eq!(planned, expected);
    }
}
