//! The guest-physical address map of an x86-64 microVM. Every fixed address and why it is there.
//!
//! ```text
//!   0x0000_0000  RAM: boot structures, then (1 MiB) the kernel and its initrd
//!   0xc000_0000  hole: 32-bit PCI window, ECAM, IOAPIC, local APIC, KVM's pages
//!   0x1_0000_0000  RAM again, then RAM that is plugged in later
//!   0x40_0000_0000 64-bit PCI window
//! ```

/// GDT read by the boot state of vCPU 0; below the boot structures.
pub(crate) const GDT: u64 = 0x500;
/// PVH start information, or the zero page for a bzImage.
pub(crate) const START_INFO: u64 = 0x1_0000;
/// PVH list of modules (one: the initrd).
pub(crate) const MODULES: u64 = 0x1_1000;
/// PVH memory map.
pub(crate) const MEMORY_MAP: u64 = 0x1_2000;
/// Kernel command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line, its terminator included (x86 COMMAND_LINE_SIZE).
pub(crate) const COMMAND_LINE_SIZE: usize = 2048;
/// End of usable conventional memory; what follows is the EBDA and ROM space of a PC, which we leave empty.
pub(crate) const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables: in the 0xe0000..0xfffff area, so that a kernel that was not told finds the RSDP too
/// (ACPI 6.5 §5.2.5.1).
pub(crate) const ACPI: u64 = 0xe_0000;
/// One byte past the area for ACPI tables.
pub(crate) const ACPI_END: u64 = 0x10_0000;
/// Where RAM proper starts and kernels are loaded.
pub(crate) const HIGH_RAM: u64 = 0x10_0000;

/// The hole below 4 GiB.
pub(crate) const HOLE: u64 = 0xc000_0000;
/// RAM goes on here.
pub(crate) const HOLE_END: u64 = 0x1_0000_0000;

/// BARs of 32 bits.
pub(crate) const PCI32: u64 = 0xc000_0000;
/// Bytes of it.
pub(crate) const PCI32_SIZE: u64 = 0x2000_0000;
/// Configuration space of bus 0: one MiB a bus (PCI Express 5.0 §7.2.2).
pub(crate) const ECAM: u64 = 0xe800_0000;
/// Bytes of it.
pub(crate) const ECAM_SIZE: u64 = 0x10_0000;
/// BARs of 64 bits. Inside 39 address bits, the smallest aperture an IOMMU is likely to have.
pub(crate) const PCI64: u64 = 0x40_0000_0000;
/// Bytes of it.
pub(crate) const PCI64_SIZE: u64 = 0x20_0000_0000;

/// I/O APIC registers, the customary address.
pub(crate) const IOAPIC: u64 = 0xfec0_0000;
/// Bytes of it.
pub(crate) const IOAPIC_SIZE: u64 = 0x1000;
/// Local APIC, the reset value of IA32_APIC_BASE.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages KVM wants on Intel for the real-mode TSS.
pub(crate) const KVM_TSS: u64 = 0xfffb_d000;

/// COM1.
pub(crate) const SERIAL: u16 = 0x3f8;
/// Ports of it.
pub(crate) const SERIAL_SIZE: u16 = 8;
/// GSI of COM1.
pub(crate) const SERIAL_GSI: u32 = 4;
/// GSI of every PCI interrupt pin: virtio has none, and passed functions that know no messages are rare.
pub(crate) const PCI_GSI: u32 = 16;
/// Keyboard-controller reset (`reboot=k`), one port.
pub(crate) const I8042_COMMAND: u16 = 0x64;
/// ACPI reset, sleep control and sleep status registers (ACPI 6.5 §4.8.3.6, §4.8.3.7).
pub(crate) const POWER: u16 = 0x600;
/// Ports of it.
pub(crate) const POWER_SIZE: u16 = 4;

/// First GSI for MSI routes: past the I/O APIC's pins.
pub(crate) const FIRST_MSI_GSI: u32 = 24;

/// Most vCPUs; local APIC ids then need no x2APIC structures in the MADT.
pub(crate) const MAX_VCPUS: u8 = 64;

/// vsock context identifier of every guest: each has its own device, so one number serves all
/// (virtio 1.2 §5.10.4; 0 to 2 are reserved).
pub(crate) const GUEST_CID: u64 = 3;

/// RAM of `bytes` as (guest address, length) around the hole.
pub(crate) fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= HOLE { vec![(0, bytes)] } else { vec![(0, HOLE), (HOLE_END, bytes - HOLE)] }
}

/// Where RAM that is plugged in later starts, behind the `boot` bytes of RAM there are from the beginning. Linux
/// adds memory in blocks of up to 2 GiB and wants them whole.
pub(crate) fn hotplug_start(boot: u64) -> u64 {
    let end = ram_ranges(boot).last().map_or(0, |&(start, length)| start + length);
    end.max(HOLE_END).next_multiple_of(2 << 30)
}

/// How such RAM of `bytes` is divided: blocks of 2 MiB, the size of a huge page, or larger ones, so that they
/// are at most 16384 and a process may map each by itself (vm.max_map_count).
pub(crate) fn hotplug_block(bytes: u64) -> u64 {
    (bytes / 16384).next_power_of_two().max(2 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ram_ranges(64 << 20), [(0, 64 << 20)]);
        assert_eq!(ram_ranges(HOLE), [(0, HOLE)]);
        assert_eq!(ram_ranges(HOLE + 4096), [(0, HOLE), (HOLE_END, 4096)]);
    }

    #[test]
    fn memory_is_plugged_behind_that_of_the_boot() {
        assert_eq!(hotplug_start(64 << 20), HOLE_END);
        assert_eq!(hotplug_start(HOLE), HOLE_END);
        assert_eq!(hotplug_start(HOLE + 4096), HOLE_END + (2 << 30));
        assert_eq!(hotplug_start(HOLE + (2 << 30)), HOLE_END + (2 << 30));
        assert_eq!(hotplug_block(4 << 30), 2 << 20);
        assert_eq!(hotplug_block(32 << 30), 2 << 20);
        assert_eq!(hotplug_block(240 << 30), 16 << 20);
    }

    #[test]
    fn regions_do_not_overlap() {
        let mut regions = [
            (PCI32, PCI32_SIZE),
            (ECAM, ECAM_SIZE),
            (IOAPIC, IOAPIC_SIZE),
            (u64::from(LOCAL_APIC), 0x1000),
            (KVM_TSS, 0x3000),
            (PCI64, PCI64_SIZE),
        ];
        regions.sort_unstable();
        let below: Vec<_> = regions.iter().filter(|r| r.0 < HOLE_END).collect();
        assert!(below.iter().all(|r| r.0 >= HOLE && r.0 + r.1 <= HOLE_END), "{below:x?}");
        for pair in regions.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}
