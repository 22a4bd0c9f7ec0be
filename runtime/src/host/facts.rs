//! Reads the facts about the host that a plan needs.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::LinuxDeviceType;
use oci_spec::runtime::Spec;

use crate::host::pci;
use crate::plan::BlockDevice;
use crate::plan::HostFacts;
use crate::plan::SourceKind;
use crate::plan::wanted_groups;
use crate::plan::wanted_sources;

/// Reads the facts about every path and device of the spec. A path or device that cannot be read is left out, and the
/// plan refuses it by name.
pub fn gather(spec: &Spec) -> HostFacts {
    let (sources, blocks) = wanted_sources(spec);
    HostFacts {
        memory_mib: memory_mib(),
        cpus: cpus(),
        sources: sources.into_iter().filter_map(|path| Some((path.into(), kind(path)?))).collect(),
        block_devices: blocks
            .into_iter()
            .filter_map(|id| Some((id, block_device(id)?)))
            .collect::<BTreeMap<_, _>>(),
        vfio: wanted_groups(spec)
            .into_iter()
            .filter_map(|number| Some((number, pci::group_of_node(Path::new(pci::SYS), number)?)))
            .collect(),
    }
}

fn cpus() -> u8 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    u8::try_from(cpus).unwrap_or(u8::MAX)
}

/// RAM of the host, MiB.
pub fn memory_mib() -> u32 {
    let info = rustix::system::sysinfo();
    #[expect(clippy::useless_conversion, reason = "the width of these fields depends on the target")]
    let bytes = u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit));
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

/// The kind of a path; none if it cannot be read.
pub fn kind(path: &Path) -> Option<SourceKind> {
    let metadata = std::fs::metadata(path).ok()?;
    let typ = metadata.file_type();
    Some(if typ.is_dir() {
        SourceKind::Directory
    } else if typ.is_socket() {
        SourceKind::Socket
    } else if typ.is_block_device() {
        SourceKind::BlockDevice
    } else if typ.is_char_device() {
        let device = metadata.rdev();
        SourceKind::CharacterDevice { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
    } else {
        SourceKind::File
    })
}

/// Type and number of a device node; none for another file.
pub fn device(path: &Path) -> Option<(LinuxDeviceType, (i64, i64))> {
    let metadata = std::fs::metadata(path).ok()?;
    let typ = metadata.file_type();
    let typ = if typ.is_block_device() {
        LinuxDeviceType::B
    } else if typ.is_char_device() {
        LinuxDeviceType::C
    } else {
        return None;
    };
    let number = metadata.rdev();
    Some((typ, (rustix::fs::major(number).into(), rustix::fs::minor(number).into())))
}

/// The node of a block device, by the kernel's name for it.
fn block_device((major, minor): (i64, i64)) -> Option<BlockDevice> {
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(BlockDevice { node: Path::new("/dev").join(name) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_kinds() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(kind(directory.path()), Some(SourceKind::Directory));
        assert_eq!(kind(&socket), Some(SourceKind::Socket));
        assert_eq!(kind(Path::new("/dev/null")), Some(SourceKind::CharacterDevice { major: 1, minor: 3 }));
        assert_eq!(kind(&directory.path().join("none")), None);
        assert!(memory_mib() > 0);
    }
}
