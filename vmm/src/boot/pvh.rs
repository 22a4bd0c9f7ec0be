//! The PVH start information (Xen public header `arch-x86/hvm/start_info.h`, version 1), written field by field.

use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;

use super::kernel::BootInfo;
use crate::layout;

/// XEN_HVM_START_MAGIC_VALUE.
const MAGIC: u32 = 0x336e_c578;
/// XEN_HVM_MEMMAP_TYPE_RAM and _RESERVED.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

pub(super) fn write(memory: &GuestMemoryMmap, info: &BootInfo) -> Result<(), String> {
    let mut map = Vec::new();
    let entries = info
        .ram
        .iter()
        .map(|&(start, length)| (start, length, RAM))
        // Without this Linux does not trust ECAM.
        .chain([(layout::ECAM, layout::ECAM_SIZE, RESERVED)]);
    let mut count: u32 = 0;
    for (start, length, kind) in entries {
        map.extend(start.to_le_bytes());
        map.extend(length.to_le_bytes());
        map.extend(kind.to_le_bytes());
        map.extend(0u32.to_le_bytes());
        count += 1;
    }
    let mut modules = Vec::new();
    if let Some((start, length)) = info.initrd {
        for field in [start, length, 0, 0] {
            modules.extend(field.to_le_bytes());
        }
    }
    let mut start = Vec::new();
    start.extend(MAGIC.to_le_bytes());
    start.extend(1u32.to_le_bytes()); // version
    start.extend(0u32.to_le_bytes()); // flags
    start.extend(u32::from(info.initrd.is_some()).to_le_bytes());
    start.extend(layout::MODULES.to_le_bytes());
    start.extend(layout::COMMAND_LINE.to_le_bytes());
    start.extend(info.rsdp.to_le_bytes());
    start.extend(layout::MEMORY_MAP.to_le_bytes());
    start.extend(count.to_le_bytes());
    start.extend(0u32.to_le_bytes());
    for (bytes, at) in [(&start, layout::START_INFO), (&modules, layout::MODULES), (&map, layout::MEMORY_MAP)]
    {
        if !bytes.is_empty() {
            memory.write_slice(bytes, GuestAddress(at)).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_header_says() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let info = BootInfo {
            ram: vec![(0, 0x9_fc00), (0x10_0000, 0x100_0000)],
            initrd: Some((0x80_0000, 0x1234)),
            command_line: 0,
            rsdp: 0xe_0000,
        };
        write(&memory, &info).unwrap();
        let word = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        let long = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let start = layout::START_INFO;
        assert_eq!((word(start), word(start + 4), word(start + 12)), (MAGIC, 1, 1));
        assert_eq!(long(start + 16), layout::MODULES);
        assert_eq!(long(start + 24), layout::COMMAND_LINE);
        assert_eq!(long(start + 32), 0xe_0000);
        assert_eq!((long(start + 40), word(start + 48)), (layout::MEMORY_MAP, 3));
        assert_eq!((long(layout::MODULES), long(layout::MODULES + 8)), (0x80_0000, 0x1234));
        assert_eq!(long(layout::MEMORY_MAP + 24), 0x10_0000);
        assert_eq!(word(layout::MEMORY_MAP + 2 * 24 + 16), RESERVED);
    }
}
