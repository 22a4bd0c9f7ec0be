//! `--security-opt`. Pure.

use std::str::FromStr;

/// The security options of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SecurityOptions {
    /// The process and its children gain no privileges by executing a program (prctl(2), `PR_SET_NO_NEW_PRIVS`).
    pub no_new_privileges: bool,
    /// No system call filter.
    pub seccomp_unconfined: bool,
    /// No path of `/proc` and `/sys` is masked or read-only.
    pub paths_unconfined: bool,
}

/// One `--security-opt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityOption {
    /// `no-new-privileges`, or `no-new-privileges=false`.
    NoNewPrivileges(bool),
    /// `seccomp=unconfined`, or `seccomp=builtin`.
    SeccompUnconfined(bool),
    /// `systempaths=unconfined`.
    PathsUnconfined,
    /// Something that is so anyway.
    Already,
}

/// The option cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSecurityOption {
    /// Unknown word.
    #[error(
        "{0:?} is not a security option; write no-new-privileges, seccomp=unconfined or systempaths=unconfined"
    )]
    Unknown(String),
    /// The profile is in a file.
    #[error("{0:?}: kiai takes no seccomp profile of a file; seccomp=unconfined turns its own off")]
    Profile(String),
    /// AppArmor and SELinux.
    #[error("{0:?}: the guest's kernel has neither AppArmor nor SELinux (docs/limitations.md)")]
    Label(String),
}

impl SecurityOptions {
    /// All options together; the last of a kind counts.
    pub fn of(options: &[SecurityOption]) -> Self {
        let mut all = Self::default();
        for option in options {
            match option {
                SecurityOption::NoNewPrivileges(on) => all.no_new_privileges = *on,
                SecurityOption::SeccompUnconfined(on) => all.seccomp_unconfined = *on,
                SecurityOption::PathsUnconfined => all.paths_unconfined = true,
                SecurityOption::Already => {}
            }
        }
        all
    }
}

impl FromStr for SecurityOption {
    type Err = BadSecurityOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once(['=', ':']).map_or((text, None), |(n, v)| (n, Some(v)));
        match (name, value) {
            ("no-new-privileges", None | Some("true")) => Ok(Self::NoNewPrivileges(true)),
            ("no-new-privileges", Some("false")) => Ok(Self::NoNewPrivileges(false)),
            ("seccomp", Some("unconfined")) => Ok(Self::SeccompUnconfined(true)),
            ("seccomp", Some("builtin")) => Ok(Self::SeccompUnconfined(false)),
            ("seccomp", Some(_)) => Err(BadSecurityOption::Profile(text.to_owned())),
            ("systempaths", Some("unconfined")) => Ok(Self::PathsUnconfined),
            ("apparmor", Some("unconfined")) | ("label", Some("disable")) => Ok(Self::Already),
            ("apparmor" | "label", Some(_)) => Err(BadSecurityOption::Label(text.to_owned())),
            _ => Err(BadSecurityOption::Unknown(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_add_up() {
        let all = ["no-new-privileges", "seccomp=unconfined", "apparmor=unconfined", "label:disable"]
            .map(|text| text.parse().unwrap());
        let expected =
            SecurityOptions { no_new_privileges: true, seccomp_unconfined: true, paths_unconfined: false };
        assert_eq!(SecurityOptions::of(&all), expected);
        let all = ["no-new-privileges:true", "no-new-privileges=false", "systempaths=unconfined"];
        let expected = SecurityOptions { paths_unconfined: true, ..SecurityOptions::default() };
        assert_eq!(SecurityOptions::of(&all.map(|text| text.parse().unwrap())), expected);
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        type Kind = fn(String) -> BadSecurityOption;
        let table: [(&str, Kind); 5] = [
            ("seccomp=/etc/profile.json", BadSecurityOption::Profile),
            ("apparmor=docker-default", BadSecurityOption::Label),
            ("label=type:svirt_t", BadSecurityOption::Label),
            ("no-new-privileges=maybe", BadSecurityOption::Unknown),
            ("fly", BadSecurityOption::Unknown),
        ];
        for (text, kind) in table {
            assert_eq!(text.parse::<SecurityOption>(), Err(kind(text.to_owned())), "{text}");
        }
    }
}
