//! `--mount KEY=VALUE,...`, which says with more words what `-v` and `--tmpfs` say. Pure.

use std::path::PathBuf;
use std::str::FromStr;

use crate::spec::quantity::parse_bytes;
use crate::spec::volume::TmpfsMount;
use crate::spec::volume::VolumeError;
use crate::spec::volume::VolumeOption;
use crate::spec::volume::VolumeSource;
use crate::spec::volume::destination;
use crate::spec::volume::is_name;

/// The value of `--mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountOption {
    /// `type=bind` or `type=volume`.
    Volume(VolumeOption),
    /// `type=tmpfs`.
    Tmpfs(TmpfsMount),
}

/// The text is not a mount.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MountOptionError {
    /// A part is unknown, or has no value.
    #[error("{text:?}: {part:?} is not a part of --mount, or not of this type of mount")]
    Part {
        /// The whole text.
        text: String,
        /// The part.
        part: String,
    },
    /// The type is unknown.
    #[error("{text:?}: mounts of type {kind:?} are not to be had; write bind, volume or tmpfs")]
    Kind {
        /// The whole text.
        text: String,
        /// The type.
        kind: String,
    },
    /// A part is missing.
    #[error("{text:?}: {part} is missing")]
    Missing {
        /// The whole text.
        text: String,
        /// The part.
        part: &'static str,
    },
    /// As of `-v`.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// The parts, as text.
#[derive(Default)]
struct Parts<'a> {
    source: Option<&'a str>,
    target: Option<&'a str>,
    read_only: bool,
    nocopy: bool,
    tmpfs: Vec<String>,
}

impl FromStr for MountOption {
    type Err = MountOptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<(&str, &str)> =
            text.split(',').map(|word| word.split_once('=').unwrap_or((word, ""))).collect();
        let kind = words.iter().rev().find(|(key, _)| *key == "type").map_or("volume", |(_, value)| value);
        if !["bind", "volume", "tmpfs"].contains(&kind) {
            return Err(MountOptionError::Kind { text: text.to_owned(), kind: kind.to_owned() });
        }
        let parts = parts(text, kind, &words)?;
        let missing = |part| MountOptionError::Missing { text: text.to_owned(), part };
        let place = destination(text, parts.target.ok_or_else(|| missing("target"))?)?;
        if kind == "tmpfs" {
            let options: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).into();
            let read_only = parts.read_only.then(|| "ro".to_owned());
            let options = options.into_iter().chain(parts.tmpfs).chain(read_only).collect();
            return Ok(Self::Tmpfs(TmpfsMount { destination: place, options }));
        }
        let source = match (kind, parts.source) {
            ("bind", Some(source)) => VolumeSource::Path(PathBuf::from(source)),
            ("bind", None) => return Err(missing("source")),
            (_, Some(name)) if is_name(name) => VolumeSource::Named(name.to_owned()),
            (_, Some(name)) => return Err(VolumeError::Name(name.to_owned()).into()),
            (_, None) => VolumeSource::Anonymous,
        };
        Ok(Self::Volume(VolumeOption {
            // Unlike -v, --mount makes no directory on the host.
            must_exist: kind == "bind",
            source,
            destination: place,
            read_only: parts.read_only,
            copy: !parts.nocopy,
        }))
    }
}

fn parts<'a>(text: &str, kind: &str, words: &[(&'a str, &'a str)]) -> Result<Parts<'a>, MountOptionError> {
    let mut parts = Parts::default();
    for (key, value) in words {
        let flag = match *value {
            "" | "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        };
        let refused = || MountOptionError::Part { text: text.to_owned(), part: format!("{key}={value}") };
        match (kind, *key) {
            (_, "type") => {}
            ("bind" | "volume", "source" | "src") if !value.is_empty() => parts.source = Some(value),
            (_, "target" | "dst" | "destination") if !value.is_empty() => parts.target = Some(value),
            (_, "readonly" | "ro") => parts.read_only = flag.ok_or_else(refused)?,
            // Mounts do not propagate from a microVM, nor does macOS stand between.
            ("bind", "bind-propagation") if ["private", "rprivate"].contains(value) => {}
            ("bind", "consistency") => {}
            ("volume", "volume-nocopy") => parts.nocopy = flag.ok_or_else(refused)?,
            ("tmpfs", "tmpfs-size") => {
                let bytes = parse_bytes(value).map_err(|_| refused())?;
                parts.tmpfs.push(format!("size={bytes}"));
            }
            ("tmpfs", "tmpfs-mode") if !value.is_empty() => {
                u32::from_str_radix(value, 8).map_err(|_| refused())?;
                parts.tmpfs.push(format!("mode={value}"));
            }
            _ => return Err(refused()),
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(source: VolumeSource, must_exist: bool, read_only: bool, copy: bool) -> MountOption {
        MountOption::Volume(VolumeOption { source, destination: "/d".into(), read_only, must_exist, copy })
    }

    #[test]
    fn mounts_of_every_type_are_read() {
        let path = || VolumeSource::Path("/a".into());
        let named = || VolumeSource::Named("n".into());
        let table = [
            ("type=bind,source=/a,target=/d", volume(path(), true, false, true)),
            ("type=bind,src=/a,dst=/d,readonly,bind-propagation=rprivate", volume(path(), true, true, true)),
            ("source=n,destination=/d,ro=false", volume(named(), false, false, true)),
            ("type=volume,src=n,dst=/d,volume-nocopy", volume(named(), false, false, false)),
            ("dst=/d,type=volume,readonly=true", volume(VolumeSource::Anonymous, false, true, true)),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        let Ok(MountOption::Tmpfs(tmpfs)) = "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770".parse()
        else {
            panic!()
        };
        assert_eq!(tmpfs.options, ["noexec", "nosuid", "nodev", "size=1048576", "mode=1770"]);
    }

    #[test]
    fn what_is_no_mount_is_refused_by_name() {
        for (text, part) in [
            ("type=npipe,target=/d", "npipe"),
            ("type=bind,target=/d", "source"),
            ("type=bind,source=/a", "target"),
            ("type=bind,source=/a,target=d", "absolute"),
            ("type=bind,source=/a,target=/d,bind-propagation=rshared", "rshared"),
            ("type=bind,source=/a,target=/d,tmpfs-size=1m", "tmpfs-size"),
            ("type=tmpfs,target=/d,tmpfs-mode=9", "tmpfs-mode"),
            ("type=tmpfs,source=/a,target=/d", "source"),
            ("source=/a,target=/d", "/a"),
            ("target=/d,readonly=maybe", "maybe"),
        ] {
            let error = text.parse::<MountOption>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
