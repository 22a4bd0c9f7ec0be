//! `--device HOST[:CONTAINER[:PERMISSIONS]]`, `pci:ADDRESS[,MODE]` or a CDI device, and the device rules of a
//! container.
//!
//! The numbers here are those on the host; the agent finds the numbers in the guest (OCI runtime-spec
//! `config-linux.md#devices`). Pure: the caller reads the node.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::runtime::LinuxDevice;
use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::LinuxDeviceType;
use serde::Deserialize;
use serde::Serialize;

use crate::cdi::DeviceName;
use crate::plan::ParsePciAddressError;
use crate::plan::PassthroughMode;
use crate::plan::PciAddress;

/// The user's name of a device that is to be unplugged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluggedOption {
    /// By the path of its entry: a node's path in the container, an IOMMU group's on the host.
    Path(PathBuf),
    /// A PCI function, by its address on the host.
    Pci(PciAddress),
    /// All entries of a CDI device.
    Cdi(DeviceName),
}

impl FromStr for PluggedOption {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.parse()? {
            // Normalized, because paths are compared in this form.
            DeviceOption::Node(node) => Self::Path(node.container.components().collect()),
            DeviceOption::Pci(address, _) => Self::Pci(address),
            DeviceOption::Cdi(name) => Self::Cdi(name),
        })
    }
}

impl fmt::Display for PluggedOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pci(address) => write!(f, "pci:{address}"),
            Self::Cdi(name) => name.fmt(f),
        }
    }
}

/// The parsed value of `--device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceOption {
    /// A device node of the host.
    Node(NodeOption),
    /// A PCI function of the host, and its passthrough mode.
    Pci(PciAddress, PassthroughMode),
    /// A CDI device.
    Cdi(DeviceName),
}

/// A device node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOption {
    /// Path on the host.
    pub host: PathBuf,
    /// Path in the container.
    pub container: PathBuf,
    /// Permissions, from the letters `r`, `w`, `m`.
    pub permissions: String,
}

/// The text is not the name of a device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The text is not `HOST[:CONTAINER[:PERMISSIONS]]`.
    #[error(
        "{0:?} is not a device; write HOST, HOST:CONTAINER or HOST:CONTAINER:rwm with absolute paths, pci:ADDRESS, or a CDI device like vendor.com/class=name"
    )]
    Form(String),
    /// The permissions have a letter other than r, w, m.
    #[error("{0:?}: permissions are made of the letters r, w and m")]
    Permissions(String),
    /// The text after `pci:` is not an address.
    #[error(transparent)]
    Pci(#[from] ParsePciAddressError),
    /// The text after the address is not a passthrough mode.
    #[error("{0:?}: append ,guest-driver or ,user-space to the address, or nothing")]
    Mode(String),
}

/// `pci:ADDRESS[,MODE]`; without a mode the guest's kernel drives the function.
fn pci(text: &str, word: &str) -> Result<DeviceOption, DeviceError> {
    let (address, mode) = word.split_once(',').unwrap_or((word, "guest-driver"));
    let mode = mode.parse().map_err(|()| DeviceError::Mode(text.to_owned()))?;
    Ok(DeviceOption::Pci(address.parse()?, mode))
}

impl FromStr for DeviceOption {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(word) = text.strip_prefix("pci:") {
            return pci(text, word);
        }
        if let Ok(name) = text.parse() {
            return Ok(Self::Cdi(name));
        }
        let parts: Vec<&str> = text.split(':').collect();
        let is_permissions =
            |word: &str| !word.is_empty() && word.chars().all(|letter| "rwm".contains(letter));
        let (host, container, permissions) = match parts[..] {
            [host] => (host, host, "rwm"),
            [host, second] if second.starts_with('/') => (host, second, "rwm"),
            [host, second] if is_permissions(second) => (host, host, second),
            [host, container, permissions] => (host, container, permissions),
            _ => return Err(DeviceError::Form(text.to_owned())),
        };
        if !host.starts_with('/') || !container.starts_with('/') {
            return Err(DeviceError::Form(text.to_owned()));
        }
        if !is_permissions(permissions) {
            return Err(DeviceError::Permissions(text.to_owned()));
        }
        let (host, container, permissions) = (host.into(), container.into(), permissions.to_owned());
        Ok(Self::Node(NodeOption { host, container, permissions }))
    }
}

/// A device option with the type, numbers and mode of the node on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Path in the container.
    pub container: PathBuf,
    /// Whether it is a block device; else it is a character device.
    pub block: bool,
    /// Host numbers.
    pub major: u32,
    /// Host numbers.
    pub minor: u32,
    /// Permission bits of the node.
    pub mode: u32,
    /// Permissions, from the letters `r`, `w`, `m`.
    pub permissions: String,
    /// The PCI function, if the node is that of its IOMMU group.
    pub function: Option<(PciAddress, PassthroughMode)>,
}

/// The annotations (`io.kiai.vfio.<n>`) that select the PCI functions among these devices.
pub(crate) fn annotations(devices: &[HostDevice]) -> impl Iterator<Item = (String, String)> {
    let chosen = devices.iter().filter_map(|device| device.function).enumerate();
    chosen.map(|(n, (address, mode))| (format!("io.kiai.vfio.{n}"), format!("{address}={mode}")))
}

/// The entries of `linux.devices`: one for each path, as functions of one group share its node.
pub(crate) fn nodes(devices: &[HostDevice]) -> Vec<LinuxDevice> {
    let mut nodes: Vec<LinuxDevice> = Vec::new();
    for device in devices {
        let shared = |node: &LinuxDevice| device.function.is_some() && *node == device.node();
        if !nodes.iter().any(shared) {
            nodes.push(device.node());
        }
    }
    nodes
}

impl HostDevice {
    /// The entry of `linux.devices`.
    fn node(&self) -> LinuxDevice {
        let mut device = LinuxDevice::default();
        device.set_path(self.container.clone());
        device.set_typ(self.kind());
        device.set_major(self.major.into());
        device.set_minor(self.minor.into());
        device.set_file_mode(Some(self.mode & 0o777));
        device.set_uid(Some(0));
        device.set_gid(Some(0));
        device
    }

    fn rule(&self) -> LinuxDeviceCgroup {
        rule(self.kind(), Some(self.major.into()), Some(self.minor.into()), &self.permissions)
    }

    fn kind(&self) -> LinuxDeviceType {
        if self.block { LinuxDeviceType::B } else { LinuxDeviceType::C }
    }
}

fn rule(typ: LinuxDeviceType, major: Option<i64>, minor: Option<i64>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true);
    rule.set_typ(Some(typ));
    rule.set_major(major);
    rule.set_minor(minor);
    rule.set_access(Some(access.to_owned()));
    rule
}

/// Nodes every container may use: null, zero, full, random, urandom, tty, console, ptmx and the
/// pseudo-terminals. Making any node is allowed, using it is not.
const ALWAYS: &[(Option<i64>, Option<i64>, &str)] = &[
    (None, None, "m"),
    (Some(1), Some(3), "rwm"),
    (Some(1), Some(5), "rwm"),
    (Some(1), Some(7), "rwm"),
    (Some(1), Some(8), "rwm"),
    (Some(1), Some(9), "rwm"),
    (Some(5), Some(0), "rwm"),
    (Some(5), Some(1), "rwm"),
    (Some(5), Some(2), "rwm"),
    (Some(136), None, "rwm"),
];

/// The one rule of a privileged container.
pub(crate) fn every_device() -> Vec<LinuxDeviceCgroup> {
    vec![rule(LinuxDeviceType::A, None, None, "rwm")]
}

/// The rules for these devices.
pub(crate) fn rules(devices: &[HostDevice]) -> Vec<LinuxDeviceCgroup> {
    devices.iter().map(HostDevice::rule).collect()
}

/// The rules of `linux.resources.devices`: they allow the devices of every container and the requested ones only.
pub(crate) fn plan_rules(devices: &[HostDevice]) -> Vec<LinuxDeviceCgroup> {
    let mut deny = LinuxDeviceCgroup::default();
    deny.set_allow(false);
    deny.set_access(Some("rwm".to_owned()));
    let always = ALWAYS.iter().map(|(major, minor, access)| rule(LinuxDeviceType::C, *major, *minor, access));
    std::iter::once(deny)
        .chain(std::iter::once(rule(LinuxDeviceType::B, None, None, "m")))
        .chain(always)
        .chain(rules(devices))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_in_every_form() {
        let table = [
            ("/dev/a", "/dev/a", "/dev/a", "rwm"),
            ("/dev/a:/dev/b", "/dev/a", "/dev/b", "rwm"),
            ("/dev/a:r", "/dev/a", "/dev/a", "r"),
            ("/dev/a:/dev/b:rw", "/dev/a", "/dev/b", "rw"),
        ];
        for (text, host, container, permissions) in table {
            let device: DeviceOption = text.parse().unwrap();
            let expected = DeviceOption::Node(NodeOption {
                host: host.into(),
                container: container.into(),
                permissions: permissions.into(),
            });
            assert_eq!(device, expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for text in ["", "dev", "/dev/a:b", "/a:/b:rw:x", "/a:b:r"] {
            assert_eq!(text.parse::<DeviceOption>(), Err(DeviceError::Form(text.into())), "{text}");
        }
        assert_eq!("/a:/b:rx".parse::<DeviceOption>(), Err(DeviceError::Permissions("/a:/b:rx".into())));
    }

    #[test]
    fn a_device_of_a_vendor_is_called_by_its_name() {
        let name = "vendor.com/class=name";
        assert_eq!(name.parse(), Ok(DeviceOption::Cdi(name.parse().unwrap())));
        assert!(matches!("/dev/a=b".parse(), Ok(DeviceOption::Node(_))));
    }

    #[test]
    fn what_was_plugged_in_is_called_by_the_same_words() {
        for (text, shown) in [
            ("/dev/a", "/dev/a"),
            ("/dev/a:/dev//b:rw", "/dev/b"),
            ("pci:00:03.0,user-space", "pci:0000:00:03.0"),
            ("vendor.com/class=name", "vendor.com/class=name"),
        ] {
            let plugged: PluggedOption = text.parse().unwrap();
            assert_eq!(plugged.to_string(), shown);
            let json = serde_json::to_string(&plugged).unwrap();
            assert_eq!(serde_json::from_str::<PluggedOption>(&json).unwrap(), plugged, "{json}");
        }
        assert!("eth1".parse::<PluggedOption>().is_err());
        assert!(serde_json::from_str::<PluggedOption>(r#"{"pci": "3"}"#).is_err());
    }

    #[test]
    fn a_pci_function_is_driven_by_the_guest_unless_said() {
        let address = "0000:00:03.0".parse().unwrap();
        for (text, mode) in [
            ("pci:0000:00:03.0", PassthroughMode::GuestDriver),
            ("pci:00:03.0,guest-driver", PassthroughMode::GuestDriver),
            ("pci:0000:00:03.0,user-space", PassthroughMode::UserSpace),
        ] {
            assert_eq!(text.parse(), Ok(DeviceOption::Pci(address, mode)), "{text}");
        }
        assert!(matches!("pci:3".parse::<DeviceOption>(), Err(DeviceError::Pci(_))));
        assert!(matches!("pci:00:03.0,both".parse::<DeviceOption>(), Err(DeviceError::Mode(_))));
    }

    #[test]
    fn functions_of_one_group_share_a_node_and_are_told_apart_by_annotations() {
        let function = |address: &str| HostDevice {
            container: "/dev/vfio/12".into(),
            block: false,
            major: 243,
            minor: 0,
            mode: 0o600,
            permissions: "rwm".into(),
            function: Some((address.parse().unwrap(), PassthroughMode::UserSpace)),
        };
        let devices = [function("00:03.0"), function("00:03.1")];
        assert_eq!(nodes(&devices).len(), 1);
        let told: Vec<_> = annotations(&devices).map(|(name, value)| format!("{name}: {value}")).collect();
        assert_eq!(
            told,
            ["io.kiai.vfio.0: 0000:00:03.0=user-space", "io.kiai.vfio.1: 0000:00:03.1=user-space"]
        );
    }

    #[test]
    fn a_device_is_a_node_and_a_rule() {
        let device = HostDevice {
            container: "/dev/disk".into(),
            block: true,
            major: 7,
            minor: 3,
            mode: 0o60660,
            permissions: "r".into(),
            function: None,
        };
        let node = device.node();
        assert_eq!((node.typ(), node.major(), node.minor()), (LinuxDeviceType::B, 7, 3));
        assert_eq!(node.file_mode(), Some(0o660));
        let rules = plan_rules(&[device]);
        assert!(!rules[0].allow());
        assert_eq!(rules.last().unwrap().to_string(), "b 7:3 r");
    }
}
