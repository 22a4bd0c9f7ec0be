//! Reads the facts a plan asks for (`plan::HostFacts`).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::Spec;

use crate::plan::BlockDevice;
use crate::plan::HostFacts;
use crate::plan::SourceKind;
use crate::plan::wanted_sources;

/// Facts about everything `spec` names.
pub fn read(spec: &Spec) -> HostFacts {
    let (sources, blocks) = wanted_sources(spec);
    let sources = sources.into_iter().filter_map(|path| Some((path.to_path_buf(), kind(path)?))).collect();
    let block_devices = blocks
        .into_iter()
        .filter_map(|(major, minor)| {
            // /sys/dev/block has a link for each block device; its name is the node's.
            let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
            let node = Path::new("/dev").join(link.file_name()?);
            Some(((major, minor), BlockDevice { node }))
        })
        .collect::<BTreeMap<_, _>>();
    HostFacts { memory_mib: memory_mib(), sources, block_devices }
}

fn memory_mib() -> u32 {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram.saturating_mul(u64::from(info.mem_unit));
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

fn kind(path: &Path) -> Option<SourceKind> {
    let metadata = fs::metadata(path).ok()?;
    let kind = metadata.file_type();
    Some(if kind.is_dir() {
        SourceKind::Directory
    } else if kind.is_socket() {
        SourceKind::Socket
    } else if kind.is_block_device() {
        SourceKind::BlockDevice
    } else if kind.is_char_device() {
        let device = metadata.rdev();
        SourceKind::CharacterDevice { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
    } else {
        SourceKind::File
    })
}
