//! The zero page (`boot_params`) of the Linux 32-bit boot protocol, boot.rst and zero-page.rst.

use linux_loader::bootparam;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;

use super::kernel::BootInfo;
use crate::layout;

pub(super) type SetupHeader = bootparam::setup_header;

/// Offsets in the zero page.
const ACPI_RSDP: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const SETUP_HEADER: u64 = 0x1f1;
const E820_TABLE: usize = 0x2d0;

/// E820 types.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

pub(super) fn write(memory: &GuestMemoryMmap, header: &SetupHeader, info: &BootInfo) -> Result<(), String> {
    let mut header = *header;
    header.type_of_loader = 0xff; // a loader without a registered number
    header.cmd_line_ptr = u32::try_from(layout::COMMAND_LINE).map_err(|e| e.to_string())?;
    header.cmdline_size = u32::try_from(info.command_line + 1).map_err(|e| e.to_string())?;
    if let Some((start, length)) = info.initrd {
        header.ramdisk_image = u32::try_from(start).map_err(|_| "initrd above 4 GiB")?;
        header.ramdisk_size = u32::try_from(length).map_err(|_| "initrd over 4 GiB")?;
    }
    let mut page = [0u8; 4096];
    page[ACPI_RSDP..ACPI_RSDP + 8].copy_from_slice(&info.rsdp.to_le_bytes());
    let entries = info.ram.iter().map(|&(start, length)| (start, length, RAM)).chain([(
        layout::ECAM,
        layout::ECAM_SIZE,
        RESERVED,
    )]);
    let mut count = 0;
    for (i, (start, length, kind)) in entries.enumerate() {
        let at = E820_TABLE + i * 20;
        page[at..at + 8].copy_from_slice(&start.to_le_bytes());
        page[at + 8..at + 16].copy_from_slice(&length.to_le_bytes());
        page[at + 16..at + 20].copy_from_slice(&kind.to_le_bytes());
        count += 1;
    }
    page[E820_ENTRIES] = count;
    let zero_page = layout::START_INFO;
    memory.write_slice(&page, GuestAddress(zero_page)).map_err(|e| e.to_string())?;
    memory.write_obj(header, GuestAddress(zero_page + SETUP_HEADER)).map_err(|e| e.to_string())
}
