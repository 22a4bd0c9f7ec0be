//! What to build: plain data and open files, checked by [`VmConfig::validate`] before anything is made.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiai_devices::vfio::Group;
use kiai_devices::virtio::vsock::VsockPorts;

use crate::layout;

/// A microVM to be.
pub struct VmConfig {
    /// vCPUs the guest starts with, 1..=64.
    pub vcpus: u8,
    /// vCPUs that can be brought online later, at least `vcpus`, at most 64. Until then each costs the
    /// guest's memory for one CPU more.
    pub max_vcpus: u8,
    /// Guest RAM at boot, MiB, at least 32.
    pub memory_mib: u32,
    /// Guest RAM that can be had at most, by plugging more in while it runs ([`crate::VmHandle::request_memory`]);
    /// at least `memory_mib`. What is not plugged costs next to nothing.
    pub max_memory_mib: u32,
    /// Back guest RAM with 2 MiB pages from the host's pool; `memory_mib` must then be even.
    pub huge_pages: bool,
    /// Uncompressed ELF with a PVH note, or (slower) a bzImage.
    pub kernel: NamedFile,
    /// Initial RAM file system.
    pub initrd: Option<NamedFile>,
    /// Words appended to the kernel command line the VMM makes; printable ASCII.
    pub command_line: Vec<String>,
    /// Where the guest's console goes besides the ring of last lines the handle keeps.
    pub console: Option<Box<dyn Write + Send>>,
    /// Devices present at boot.
    pub devices: Vec<DeviceConfig>,
}

/// How a restored machine comes by the contents of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Copied before it runs, into memory of the largest pages there are: every byte is its own, and it runs at full speed
    /// from the first instruction.
    Copied,
    /// Mapped: what it does not write to it shares with others of the same file, for one exit a page of 4 KiB that it
    /// touches.
    Mapped,
}

/// A microVM that was saved ([`crate::VmHandle::save`]), to go on in this process.
pub struct RestoreConfig {
    /// Its state.
    pub state: NamedFile,
    /// Its memory. One that is mapped must stay as it is for as long as any machine goes on from it.
    pub memory: NamedFile,
    /// What is done with it.
    pub contents: Contents,
    /// As in [`VmConfig`].
    pub console: Option<Box<dyn Write + Send>>,
    /// The devices it had, in the order of their slots; the files, directories and taps are the caller's choice.
    pub devices: Vec<DeviceConfig>,
}

/// An open file and the name to call it by in errors.
pub struct NamedFile {
    /// What the user calls it; usually a path.
    pub name: String,
    /// Open for reading.
    pub file: File,
}

/// A device to attach, at boot or later.
pub enum DeviceConfig {
    /// virtio-blk on a raw image or a block device.
    Block {
        /// Open for reading, and for writing unless `read_only`.
        disk: NamedFile,
        /// Offer no writes.
        read_only: bool,
        /// At most 20 bytes; the agent finds the disk by it.
        serial: String,
    },
    /// virtio-net on a tap that is configured for offloads (IFF_VNET_HDR), one fd a queue pair.
    Net {
        /// Tap queues, non-blocking.
        taps: Vec<OwnedFd>,
        /// Address of the guest's side.
        mac: [u8; 6],
        /// Bytes.
        mtu: u16,
    },
    /// virtio-fs sharing a host directory.
    Fs {
        /// Mount tag, at most 36 bytes.
        tag: String,
        /// Path of the directory to share, in the mount namespace of the calling process.
        directory: std::path::PathBuf,
    },
    /// virtio-vsock, its streams in this process. At most one.
    Vsock {
        /// The host's side of every port, shared with the caller.
        ports: Arc<VsockPorts>,
    },
    /// virtio-rng, fed by the host kernel.
    Rng,
    /// virtio-balloon, through which the guest gives free pages back to the host. At most one.
    Balloon,
    /// A PCI function of the host, in the hands of `vfio-pci`. All guest memory is pinned while there is one.
    Vfio {
        /// How it was opened.
        opened: OpenFunction,
        /// "0000:00:03.0".
        address: String,
    },
}

/// A PCI function of the host, open in one of the kernel's two ways.
pub enum OpenFunction {
    /// Through its IOMMU group.
    Group(Arc<VfioGroup>),
    /// By its own device file.
    Cdev {
        /// `/dev/vfio/devices/vfioN`, not bound yet.
        cdev: NamedFile,
        /// `/dev/iommu`, used unless another function of the machine has brought one already.
        iommufd: OwnedFd,
    },
}

/// An IOMMU group of the host, open. The kernel lets it be opened once, so its functions share this.
pub struct VfioGroup {
    /// `/dev/vfio/NUMBER`.
    pub(crate) group: Group,
    /// `/dev/vfio/vfio`, used unless another group of the machine has brought one already.
    pub(crate) container: OwnedFd,
}

impl VfioGroup {
    /// `number` is for errors.
    pub fn new(number: u32, group: OwnedFd, container: OwnedFd) -> Arc<Self> {
        Arc::new(Self { group: Group::new(number.to_string(), group), container })
    }
}

/// What is wrong with a [`VmConfig`]; nothing was made yet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not `1 <= vcpus <= max_vcpus <= 64`.
    #[error("{vcpus} vCPUs of at most {max_vcpus}: between 1 and 64 can be had")]
    Vcpus {
        /// Asked for at boot.
        vcpus: u8,
        /// Asked for at most.
        max_vcpus: u8,
    },
    /// Too little for a kernel and its initrd, or more than the address map has room for.
    #[error("{0} MiB of memory: between 32 and 240000 can be had")]
    Memory(u32),
    /// Less at most than at boot, or more than the address map has room for.
    #[error(
        "{boot} MiB of memory at boot and {most} at most: at least as much, and up to 240000, can be had"
    )]
    MaxMemory {
        /// At boot.
        boot: u32,
        /// Asked for at most.
        most: u32,
    },
    /// 2 MiB pages do not add up to an odd number of MiB.
    #[error("{0} MiB of memory cannot be made of 2 MiB pages")]
    HugePages(u32),
    /// The bus has room for one.
    #[error("more than one vsock device")]
    TwoVsocks,
    /// A guest has one memory.
    #[error("more than one balloon")]
    TwoBalloons,
}

/// Whether there can be a machine of this size.
pub(crate) fn check_sizes(
    vcpus: u8,
    max_vcpus: u8,
    memory_mib: u32,
    max_memory_mib: u32,
) -> Result<(), ConfigError> {
    if vcpus == 0 || vcpus > max_vcpus || max_vcpus > layout::MAX_VCPUS {
        return Err(ConfigError::Vcpus { vcpus, max_vcpus });
    }
    // 64-bit BARs start at 256 GiB.
    if !(32..=240_000).contains(&memory_mib) {
        return Err(ConfigError::Memory(memory_mib));
    }
    if !(memory_mib..=240_000).contains(&max_memory_mib) {
        return Err(ConfigError::MaxMemory { boot: memory_mib, most: max_memory_mib });
    }
    Ok(())
}

impl VmConfig {
    /// Checks what can be checked without touching the host.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { vcpus, max_vcpus, memory_mib, max_memory_mib, .. } = *self;
        check_sizes(vcpus, max_vcpus, memory_mib, max_memory_mib)?;
        if self.huge_pages && memory_mib % 2 != 0 {
            return Err(ConfigError::HugePages(memory_mib));
        }
        let vsocks = self.devices.iter().filter(|d| matches!(d, DeviceConfig::Vsock { .. })).count();
        if vsocks > 1 {
            return Err(ConfigError::TwoVsocks);
        }
        if self.devices.iter().filter(|d| matches!(d, DeviceConfig::Balloon)).count() > 1 {
            return Err(ConfigError::TwoBalloons);
        }
        Ok(())
    }
}
