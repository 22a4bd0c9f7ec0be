//! Puts kernel, initrd and command line into guest RAM and describes them in the protocol of the image.

use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;

use linux_loader::loader::BzImage;
use linux_loader::loader::Elf;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::PvhBootCapability;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;

use super::Entry;
use super::LoadError;
use super::Protocol;
use super::bzimage;
use super::pvh;
use crate::config::NamedFile;
use crate::layout;

/// What the boot structures tell the kernel.
pub(super) struct BootInfo {
    /// RAM as (address, length), usable by the kernel.
    pub(super) ram: Vec<(u64, u64)>,
    /// (address, length) of the initrd.
    pub(super) initrd: Option<(u64, u64)>,
    /// Length of the command line without its terminator.
    pub(super) command_line: usize,
    /// Physical address of the ACPI root pointer.
    pub(super) rsdp: u64,
}

/// Loads everything; returns where vCPU 0 starts.
pub(crate) fn load(
    memory: &GuestMemoryMmap,
    memory_mib: u32,
    kernel: &mut NamedFile,
    initrd: Option<&mut NamedFile>,
    command_line: &str,
    rsdp: GuestAddress,
) -> Result<Entry, LoadError> {
    let bytes = u64::from(memory_mib) << 20;
    let image = read_image(memory, kernel)?;
    let initrd = initrd.map(|file| read_initrd(memory, bytes, file, image.end())).transpose()?;
    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    memory
        .write_slice(&line, GuestAddress(layout::COMMAND_LINE))
        .map_err(|e| LoadError::CommandLine(e.to_string()))?;
    let info = BootInfo { ram: usable_ram(bytes), initrd, command_line: command_line.len(), rsdp: rsdp.0 };
    let written = match &image {
        Image::Elf { .. } => pvh::write(memory, &info),
        Image::BzImage { header, .. } => bzimage::write(memory, header, &info),
    };
    written.map_err(|reason| LoadError::Kernel { name: kernel.name.clone(), reason })?;
    Ok(match image {
        Image::Elf { entry, .. } => Entry { address: entry, protocol: Protocol::Pvh },
        Image::BzImage { entry, .. } => Entry { address: entry, protocol: Protocol::Linux32 },
    })
}

enum Image {
    Elf { entry: GuestAddress, end: u64 },
    BzImage { entry: GuestAddress, header: Box<bzimage::SetupHeader>, end: u64 },
}

impl Image {
    /// First byte the kernel does not need for itself.
    fn end(&self) -> u64 {
        match self {
            Self::Elf { end, .. } | Self::BzImage { end, .. } => *end,
        }
    }
}

fn read_image(memory: &GuestMemoryMmap, kernel: &mut NamedFile) -> Result<Image, LoadError> {
    let name = || kernel.name.clone();
    let failed = |reason: String| LoadError::Kernel { name: kernel.name.clone(), reason };
    let mut magic = [0; 4];
    let mut file = &kernel.file;
    file.seek(SeekFrom::Start(0)).map_err(|e| failed(e.to_string()))?;
    file.read_exact(&mut magic).map_err(|_| LoadError::NotAKernel { name: name() })?;
    let high = Some(GuestAddress(layout::HIGH_RAM));
    if magic == *b"\x7fELF" {
        let loaded = Elf::load(memory, None, &mut kernel.file, high)
            .map_err(|e| failed(format!("damaged ELF: {e}")))?;
        let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
            return Err(LoadError::NoPvhNote { name: kernel.name.clone() });
        };
        return Ok(Image::Elf { entry, end: loaded.kernel_end });
    }
    match BzImage::load(memory, None, &mut kernel.file, high) {
        Ok(loaded) => {
            let header = loaded.setup_header.ok_or_else(|| failed("no setup header".into()))?;
            tracing::warn!(
                kernel = kernel.name,
                "a bzImage unpacks itself at each boot; a vmlinux starts faster"
            );
            // The kernel unpacks in place: keep clear of all it may use.
            let end = loaded.kernel_load.0.saturating_add(u64::from(header.init_size)).max(loaded.kernel_end);
            Ok(Image::BzImage { entry: loaded.kernel_load, header: Box::new(header), end })
        }
        Err(linux_loader::loader::Error::Bzimage(linux_loader::loader::bzimage::Error::InvalidBzImage)) => {
            Err(LoadError::NotAKernel { name: kernel.name.clone() })
        }
        Err(e) => Err(failed(format!("damaged bzImage: {e}"))),
    }
}

/// Puts the initrd as high below 3 GiB as it fits: far from where the kernel grows.
fn read_initrd(
    memory: &GuestMemoryMmap,
    ram: u64,
    initrd: &mut NamedFile,
    kernel_end: u64,
) -> Result<(u64, u64), LoadError> {
    let failed = |reason: String| LoadError::Initrd { name: initrd.name.clone(), reason };
    let mut file = &initrd.file;
    let length = file.seek(SeekFrom::End(0)).map_err(|e| failed(e.to_string()))?;
    if length == 0 {
        return Err(failed("empty file".into()));
    }
    file.seek(SeekFrom::Start(0)).map_err(|e| failed(e.to_string()))?;
    let top = ram.min(layout::HOLE);
    let start =
        top.checked_sub(length).map(|s| s & !0xfff).filter(|&s| s >= kernel_end).ok_or_else(|| {
            failed(format!("{length} bytes do not fit behind the kernel into {} MiB of memory", ram >> 20))
        })?;
    let count = usize::try_from(length).map_err(|_| failed("too large".into()))?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, count)
        .map_err(|e| failed(format!("read: {e}")))?;
    Ok((start, length))
}

/// RAM less the hole of a PC between 640 KiB and 1 MiB.
fn usable_ram(bytes: u64) -> Vec<(u64, u64)> {
    let mut usable = vec![(0, layout::LOW_RAM_END)];
    for (start, length) in layout::ram_ranges(bytes) {
        let from = start.max(layout::HIGH_RAM);
        usable.push((from, start + length - from));
    }
    usable
}
