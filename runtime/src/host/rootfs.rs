//! Mounts of a root file system as containerd passes them: type, source, fstab options.
//!
//! containerd runtime v2 `CreateTaskRequest.rootfs`; mount(8) names of options.

use std::path::Path;

use rustix::mount::MountFlags;

use super::mount;
use super::mount::MountError;
use super::mount::Mounted;
use super::mount::failed;
use super::overlay;

/// A mount, as `containerd.types.Mount`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FsMount {
    /// File system type, or "bind".
    pub typ: String,
    /// Device, directory or name.
    pub source: String,
    /// The mount point below the root; usually empty.
    pub target: String,
    /// fstab options.
    pub options: Vec<String>,
}

/// Mounts all of them in order, the first on `root` itself. On an error none stays mounted.
pub fn mount_all(mounts: &[FsMount], root: &Path) -> Result<Vec<Mounted>, MountError> {
    let mut done = Vec::new();
    for wanted in mounts {
        done.push(mount_one(wanted, &root.join(wanted.target.trim_start_matches('/')))?);
    }
    Ok(done)
}

fn mount_one(wanted: &FsMount, at: &Path) -> Result<Mounted, MountError> {
    let refuse = |reason: String| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, reason);
        MountError { step: "mount root file system", path: wanted.source.clone().into(), source }
    };
    let options = Options::parse(&wanted.options);
    if options.data.iter().any(|option| *option == "loop" || option.starts_with("X-containerd")) {
        return Err(refuse(format!("option {:?} is not supported", options.data)));
    }
    match wanted.typ.as_str() {
        "bind" | "rbind" | "none" | "" => {
            let read_only = options.flags.contains(MountFlags::RDONLY);
            mount::bind(Path::new(&wanted.source), at, options.recursive, read_only)
        }
        "overlay" => {
            overlay::mount(&options.data, options.flags, at)?;
            Ok(Mounted::at(at))
        }
        typ if typ.contains('/') => Err(refuse(format!("mount type {typ:?} is not supported"))),
        typ => {
            let data = std::ffi::CString::new(options.data.join(",")).map_err(|e| refuse(e.to_string()))?;
            rustix::mount::mount(wanted.source.as_str(), at, typ, options.flags, data.as_c_str())
                .map_err(failed("mount root file system", Path::new(&wanted.source)))?;
            Ok(Mounted::at(at))
        }
    }
}

/// fstab options, split into mount flags and the file system's own options.
struct Options<'a> {
    flags: MountFlags,
    recursive: bool,
    data: Vec<&'a str>,
}

impl<'a> Options<'a> {
    fn parse(all: &'a [String]) -> Self {
        let mut options = Self { flags: MountFlags::empty(), recursive: false, data: Vec::new() };
        for option in all {
            let flag = match option.as_str() {
                "ro" => MountFlags::RDONLY,
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                "strictatime" => MountFlags::STRICTATIME,
                "sync" => MountFlags::SYNCHRONOUS,
                "dirsync" => MountFlags::DIRSYNC,
                "rbind" => {
                    options.recursive = true;
                    continue;
                }
                "bind" | "rw" | "suid" | "dev" | "exec" | "atime" | "async" | "defaults" => continue,
                other => {
                    options.data.push(other);
                    continue;
                }
            };
            options.flags |= flag;
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_split_into_flags_and_data() {
        let all = ["ro", "nosuid", "rbind", "index=off", "lowerdir=/a:/b"].map(String::from);
        let options = Options::parse(&all);
        assert_eq!(options.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert!(options.recursive);
        assert_eq!(options.data, ["index=off", "lowerdir=/a:/b"]);
    }

    #[test]
    fn an_unsupported_mount_is_refused_by_name() {
        let wanted = FsMount {
            typ: "ext4".into(),
            source: "/x.img".into(),
            options: vec!["loop".into()],
            ..FsMount::default()
        };
        let error = mount_all(&[wanted], Path::new("/nonexistent")).unwrap_err();
        assert!(format!("{error}: {}", error.source).contains("/x.img"), "{error}");
    }
}
