//! Plans the mount of a storage: finds its source in the guest, and parses its options.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiai_protocol::agent::Storage;
use kiai_protocol::agent::storage::Source;
use rustix::mount::MountAttrFlags;

use super::StorageError;
use crate::device;
use crate::uevent::Uevents;

/// How long a device may take to appear. The host has attached it before it calls.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);

/// The plan of a mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// A new file system.
    New {
        /// The file system's type.
        fstype: String,
        /// Parameters of the file system in order: a key, and a value unless it is a flag.
        parameters: Vec<(String, Option<String>)>,
        /// Attributes of the mount.
        attributes: MountAttrFlags,
    },
    /// A bind mount of a directory or file of the guest.
    Bind {
        /// The path that is bound.
        source: PathBuf,
        /// With the mounts below it.
        recursive: bool,
        /// Attributes of the mount.
        attributes: MountAttrFlags,
    },
}

/// Plans the mount of a storage; waits for its device if it has one.
pub(super) async fn plan(
    request: &Storage,
    mount_point: &Path,
    uevents: &Uevents,
) -> Result<Plan, StorageError> {
    let invalid = |reason: &str| StorageError::Invalid(mount_point.to_owned(), reason.to_owned());
    let located = |error| StorageError::Device(mount_point.to_owned(), error);
    let options = Options::parse(&request.options, request.read_only);
    match &request.source {
        None => Err(invalid("no source is named")),
        Some(Source::VirtioFs(fs)) => {
            if fs.tag.is_empty() || fs.tag.len() > 36 {
                return Err(invalid("a virtio-fs tag has 1 to 36 bytes"));
            }
            device::wait_for_virtio_fs(uevents, &fs.tag, DEVICE_TIMEOUT).await.map_err(located)?;
            Ok(options.file_system("virtiofs", [("source", fs.tag.clone())]))
        }
        Some(Source::Block(block)) => {
            if block.fstype.is_empty() {
                return Err(invalid("no file system type is named"));
            }
            let locator = block.device.as_ref().ok_or_else(|| invalid("no device is named"))?;
            let node = device::wait_for(uevents, locator, DEVICE_TIMEOUT).await.map_err(located)?;
            let source = node.path.display().to_string();
            Ok(options.file_system(&block.fstype, [("source", source)]))
        }
        Some(Source::Tmpfs(tmpfs)) => {
            if tmpfs.mode > 0o7777 {
                return Err(invalid("mode has bits beyond 07777"));
            }
            let mut parameters = vec![("source", String::from("tmpfs"))];
            if tmpfs.size > 0 {
                parameters.push(("size", tmpfs.size.to_string()));
            }
            if tmpfs.mode > 0 {
                parameters.push(("mode", format!("{:o}", tmpfs.mode)));
            }
            Ok(options.file_system("tmpfs", parameters))
        }
        Some(Source::Overlay(overlay)) => {
            if overlay.lower.is_empty() {
                return Err(invalid("an overlay needs a lower directory"));
            }
            if overlay.upper.is_empty() != overlay.work.is_empty() {
                return Err(invalid("an overlay has both an upper and a work directory, or neither"));
            }
            let mut parameters = vec![("source", String::from("overlay"))];
            parameters.extend(overlay.lower.iter().map(|lower| ("lowerdir+", lower.clone())));
            if !overlay.upper.is_empty() {
                parameters.push(("upperdir", overlay.upper.clone()));
                parameters.push(("workdir", overlay.work.clone()));
            }
            Ok(options.file_system("overlay", parameters))
        }
        Some(Source::Bind(bind)) => {
            if !Path::new(&bind.source).is_absolute() {
                return Err(invalid("the source of a bind mount is not an absolute path"));
            }
            if let Some((unknown, _)) = options.parameters.iter().find(|(key, _)| key != "ro") {
                return Err(invalid(&format!("a bind mount does not know the option {unknown:?}")));
            }
            let (source, recursive) = (PathBuf::from(&bind.source), options.recursive);
            Ok(Plan::Bind { source, recursive, attributes: options.attributes })
        }
        Some(_) => Err(invalid("this agent does not know the kind of its source")),
    }
}

/// Parses the options of a mount whose file system takes none; the error is the unknown option.
pub(crate) fn attributes(options: &[String], read_only: bool) -> Result<MountAttrFlags, String> {
    let options = Options::parse(options, read_only);
    match options.parameters.into_iter().find(|(key, _)| key != "ro") {
        Some((unknown, _)) => Err(unknown),
        None => Ok(options.attributes),
    }
}

/// fstab options, split into the mount's attributes and the file system's parameters.
#[derive(Debug)]
struct Options {
    attributes: MountAttrFlags,
    parameters: Vec<(String, Option<String>)>,
    recursive: bool,
}

impl Options {
    fn parse(options: &[String], read_only: bool) -> Self {
        let mut parsed =
            Self { attributes: MountAttrFlags::empty(), parameters: Vec::new(), recursive: false };
        let mut read_only = read_only;
        for option in options.iter().flat_map(|text| text.split(',')) {
            match option {
                "" | "defaults" | "rw" | "bind" => {}
                "rbind" => parsed.recursive = true,
                "ro" => read_only = true,
                "nosuid" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
                "nodev" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
                "noexec" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
                "noatime" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME,
                "strictatime" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_STRICTATIME,
                // The kernel's default, which has no attribute.
                "relatime" | "suid" | "dev" | "exec" => {}
                "nodiratime" => parsed.attributes |= MountAttrFlags::MOUNT_ATTR_NODIRATIME,
                other => parsed.parameters.push(match other.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (other.to_owned(), None),
                }),
            }
        }
        if read_only {
            parsed.attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
            parsed.parameters.push((String::from("ro"), None));
        }
        parsed
    }

    fn file_system<'a>(self, fstype: &str, own: impl IntoIterator<Item = (&'a str, String)>) -> Plan {
        let mut parameters: Vec<_> =
            own.into_iter().map(|(key, value)| (key.to_owned(), Some(value))).collect();
        parameters.extend(self.parameters);
        Plan::New { fstype: fstype.to_owned(), parameters, attributes: self.attributes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiai_protocol::agent::{Bind, Overlay, Tmpfs};

    async fn plan_of(source: Source, read_only: bool, options: &[&str]) -> Result<Plan, StorageError> {
        let options = options.iter().map(ToString::to_string).collect();
        let request = Storage { source: Some(source), read_only, options, ..Default::default() };
        plan(&request, Path::new("/m"), &Uevents::default()).await
    }

    fn pairs(parameters: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
        parameters.iter().map(|(k, v)| (k.to_string(), v.map(String::from))).collect()
    }

    #[tokio::test]
    async fn options_go_to_the_mount_or_to_the_file_system() {
        let tmpfs = Source::Tmpfs(Tmpfs { size: 4096, mode: 0o1777, ..Default::default() });
        assert_eq!(
            plan_of(tmpfs, true, &["nosuid,nodev", "huge=never", "noswap"]).await.unwrap(),
            Plan::New {
                fstype: "tmpfs".into(),
                parameters: pairs(&[
                    ("source", Some("tmpfs")),
                    ("size", Some("4096")),
                    ("mode", Some("1777")),
                    ("huge", Some("never")),
                    ("noswap", None),
                    ("ro", None),
                ]),
                attributes: MountAttrFlags::MOUNT_ATTR_NOSUID
                    | MountAttrFlags::MOUNT_ATTR_NODEV
                    | MountAttrFlags::MOUNT_ATTR_RDONLY,
            }
        );
    }

    #[tokio::test]
    async fn an_overlay_keeps_the_order_of_its_layers() {
        let overlay = Source::Overlay(Overlay {
            lower: vec!["/top".into(), "/bottom".into()],
            upper: "/u".into(),
            work: "/w".into(),
            ..Default::default()
        });
        let Plan::New { parameters, .. } = plan_of(overlay, false, &[]).await.unwrap() else { panic!() };
        assert_eq!(
            parameters,
            pairs(&[
                ("source", Some("overlay")),
                ("lowerdir+", Some("/top")),
                ("lowerdir+", Some("/bottom")),
                ("upperdir", Some("/u")),
                ("workdir", Some("/w")),
            ])
        );
    }

    #[tokio::test]
    async fn what_cannot_be_mounted_is_refused_before_anything_is_touched() {
        let bind = |source: &str| Source::Bind(Bind { source: source.into(), ..Default::default() });
        assert!(plan_of(bind("relative"), false, &[]).await.is_err());
        assert!(plan_of(bind("/x"), false, &["size=1"]).await.is_err());
        assert!(plan_of(bind("/x"), true, &["rbind", "nosuid"]).await.is_ok());
        let half = Overlay { lower: vec!["/l".into()], upper: "/u".into(), ..Default::default() };
        assert!(plan_of(Source::Overlay(half), false, &[]).await.is_err());
        assert!(plan_of(Source::Overlay(Overlay::default()), false, &[]).await.is_err());
    }
}
