//! Facts about the host that a plan needs, as plain data.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use oci_spec::runtime::LinuxDeviceType;
use oci_spec::runtime::Spec;

use super::VfioGroupFacts;
use super::devices;
use super::mounts;

/// Facts about the host for one spec, which `host::facts` reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// RAM of the host, MiB.
    pub memory_mib: u32,
    /// CPUs this process may use.
    pub cpus: u8,
    /// The kind of each bind mount's source. A source that does not exist is not in the map.
    pub sources: BTreeMap<PathBuf, SourceKind>,
    /// Nodes of the block devices the spec names, by (major, minor).
    pub block_devices: BTreeMap<(i64, i64), BlockDevice>,
    /// VFIO groups the spec names, by (major, minor) of their nodes.
    pub vfio: BTreeMap<(i64, i64), VfioGroupFacts>,
}

/// A block device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its node under /dev.
    pub node: PathBuf,
}

/// The kind of a path on the host, with symbolic links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory.
    Directory,
    /// A regular file or fifo.
    File,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice,
}

/// The mount sources, and the block devices by (major, minor), whose facts the plan of this spec needs.
pub fn wanted_sources(spec: &Spec) -> (BTreeSet<&Path>, BTreeSet<(i64, i64)>) {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let sources = mounts.iter().filter_map(mounts::host_source).collect();
    let devices = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    let blocks = devices
        .iter()
        .filter(|device| device.typ() == LinuxDeviceType::B)
        .map(|device| (device.major(), device.minor()))
        .collect();
    (sources, blocks)
}

/// The (major, minor) of the spec's character devices that may be VFIO groups.
pub fn wanted_groups(spec: &Spec) -> BTreeSet<(i64, i64)> {
    let devices = spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    devices
        .iter()
        .filter(|device| matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U))
        .map(|device| (device.major(), device.minor()))
        .filter(|&(major, minor)| !devices::is_guest_native(major, minor))
        .collect()
}
