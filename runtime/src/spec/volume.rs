//! `-v SOURCE:DESTINATION[:OPTIONS]` and `--tmpfs PATH[:OPTIONS]`, parsed but not resolved on the host. Pure.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The source of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// A file or directory of the host, absolute or relative to the working directory.
    Path(PathBuf),
    /// A named volume, a directory that Kiai keeps.
    Named(String),
    /// A volume that is made for this container.
    Anonymous,
}

impl fmt::Display for VolumeOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            VolumeSource::Path(path) => write!(f, "{}", path.display())?,
            VolumeSource::Named(name) => f.write_str(name)?,
            VolumeSource::Anonymous => return write!(f, "{}", self.destination.display()),
        }
        write!(f, ":{}{}", self.destination.display(), if self.read_only { ":ro" } else { "" })
    }
}

/// The parsed value of `-v`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOption {
    /// Source of the content.
    pub source: VolumeSource,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// Not writable from the container.
    pub read_only: bool,
    /// The source is not made if it does not exist.
    pub must_exist: bool,
    /// A volume without content gets the image's at its destination.
    pub copy: bool,
}

/// The text is not a volume or not a tmpfs.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VolumeError {
    /// Not `SOURCE:DESTINATION[:OPTIONS]`.
    #[error("{0:?} is not a volume; write SOURCE:DESTINATION, SOURCE:DESTINATION:ro or DESTINATION")]
    Form(String),
    /// The destination is not absolute, or is the root itself.
    #[error("{0:?}: the destination must be an absolute path below /")]
    Destination(String),
    /// The name cannot be a directory's.
    #[error(
        "{0:?}: a volume's name is made of letters, digits, '.', '_' and '-', or write a path with a '/'"
    )]
    Name(String),
    /// Unknown option.
    #[error("{text:?}: {option:?} is not an option of a volume; write ro, rw or nocopy")]
    Option {
        /// The whole text.
        text: String,
        /// The unknown part.
        option: String,
    },
}

pub(crate) fn destination(text: &str, path: &str) -> Result<PathBuf, VolumeError> {
    let refused = || VolumeError::Destination(text.to_owned());
    let trimmed = path.trim_end_matches('/');
    let climbs = trimmed.split('/').any(|part| part == "..");
    if !path.starts_with('/') || trimmed.is_empty() || climbs {
        return Err(refused());
    }
    Ok(PathBuf::from(trimmed))
}

/// Whether a text is a valid name of a volume or container.
pub fn is_name(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first
        && text.len() <= 128
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl FromStr for VolumeOption {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || VolumeError::Form(text.to_owned());
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] if target.starts_with('/') => {
                return Ok(Self {
                    source: VolumeSource::Anonymous,
                    destination: destination(text, target)?,
                    read_only: false,
                    must_exist: false,
                    copy: true,
                });
            }
            [source, target] => (source, target, ""),
            [source, target, options] => (source, target, options),
            _ => return Err(form()),
        };
        if source.is_empty() || target.is_empty() {
            return Err(form());
        }
        let source = if source.contains('/') || source == "." || source == ".." {
            VolumeSource::Path(source.into())
        } else if is_name(source) {
            VolumeSource::Named(source.to_owned())
        } else {
            return Err(VolumeError::Name(text.to_owned()));
        };
        let (mut read_only, mut copy) = (false, true);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => read_only = true,
                "rw" => read_only = false,
                "nocopy" => copy = false,
                // SELinux labels, consistency and propagation: nothing of it is different in a microVM.
                "z" | "Z" | "cached" | "delegated" | "consistent" | "private" | "rprivate" => {}
                _ => {
                    let (text, option) = (text.to_owned(), option.to_owned());
                    return Err(VolumeError::Option { text, option });
                }
            }
        }
        Ok(Self { source, destination: destination(text, target)?, read_only, must_exist: false, copy })
    }
}

/// A volume with its resolved path on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// Not writable from the container.
    pub read_only: bool,
}

/// A file system in the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmpfsMount {
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// Mount options, docker's defaults included.
    pub options: Vec<String>,
}

impl FromStr for TmpfsMount {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, asked) = text.split_once(':').unwrap_or((text, ""));
        let mut options: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).into();
        for option in asked.split(',').filter(|option| !option.is_empty()) {
            // An option undoes its opposite: `exec` after the default `noexec`.
            let opposite = option.strip_prefix("no").map_or_else(|| format!("no{option}"), str::to_owned);
            options.retain(|known| *known != opposite && known != option);
            options.push(option.to_owned());
        }
        Ok(Self { destination: destination(text, path)?, options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_paths_or_names() {
        let table = [
            ("/a:/b", VolumeSource::Path("/a".into()), "/b", false),
            ("./a:/b:rw", VolumeSource::Path("./a".into()), "/b", false),
            (".:/b", VolumeSource::Path(".".into()), "/b", false),
            ("/a:/b/:ro", VolumeSource::Path("/a".into()), "/b", true),
            ("data:/b:ro", VolumeSource::Named("data".into()), "/b", true),
            ("data:/b:nocopy,Z", VolumeSource::Named("data".into()), "/b", false),
            ("/b", VolumeSource::Anonymous, "/b", false),
        ];
        for (text, source, destination, read_only) in table {
            let expected = VolumeOption {
                source,
                destination: destination.into(),
                read_only,
                must_exist: false,
                copy: !text.contains("nocopy"),
            };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        for text in ["", "a", ":/b", "/a:", "/a:/b:ro:x"] {
            assert_eq!(text.parse::<VolumeOption>(), Err(VolumeError::Form(text.into())), "{text}");
        }
        for text in ["/a:b", "/a:/", "/a://", "/a:/b/../c"] {
            assert_eq!(text.parse::<VolumeOption>(), Err(VolumeError::Destination(text.into())), "{text}");
        }
        assert_eq!("-x:/b".parse::<VolumeOption>(), Err(VolumeError::Name("-x:/b".into())));
        assert!(matches!("/a:/b:sync".parse::<VolumeOption>(), Err(VolumeError::Option { .. })));
    }

    #[test]
    fn tmpfs_options_undo_the_defaults() {
        let table: [(&str, &[&str]); 3] = [
            ("/t", &["noexec", "nosuid", "nodev"]),
            ("/t:size=1m,exec", &["nosuid", "nodev", "size=1m", "exec"]),
            ("/t:noexec,suid", &["nodev", "noexec", "suid"]),
        ];
        for (text, options) in table {
            let tmpfs: TmpfsMount = text.parse().unwrap();
            assert_eq!(
                (tmpfs.destination, tmpfs.options),
                (PathBuf::from("/t"), options.iter().map(|o| (*o).to_owned()).collect()),
                "{text}"
            );
        }
    }
}
