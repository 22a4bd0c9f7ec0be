//! Static ACPI tables (ACPI 6.5): what the guest cannot find out by looking. No AML for hotplug.
//!
//! Hardware-reduced: MADT (processors, I/O APIC), MCFG (ECAM), FADT (reset and sleep registers), and a DSDT
//! with the PCI host bridge, COM1 and the value that powers off.

use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::fadt::FADTBuilder;
use acpi_tables::fadt::Flags;
use acpi_tables::gas::AccessSize;
use acpi_tables::gas::AddressSpace;
use acpi_tables::gas::GAS;
use acpi_tables::madt;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;

use crate::layout;

const OEM: [u8; 6] = *b"KIAI  ";
const TABLE: [u8; 8] = *b"KIAIVMM ";
const REVISION: u32 = 1;
/// I/O APIC id: past every local APIC id.
const IOAPIC_ID: u8 = layout::MAX_VCPUS;
/// Value of the reset register that resets.
pub(crate) const RESET_VALUE: u8 = 1;
/// SLP_TYP of S5, as the DSDT's `_S5_` says.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;

/// Writes the tables for `vcpus` processors; returns the root pointer's address.
pub(crate) fn write(
    memory: &GuestMemoryMmap,
    vcpus: u8,
) -> Result<GuestAddress, vm_memory::GuestMemoryError> {
    let rsdp_at = layout::ACPI;
    let mut next = rsdp_at + 64;
    let mut place = |bytes: &[u8]| -> Result<u64, vm_memory::GuestMemoryError> {
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        assert!(next <= layout::ACPI_END, "the tables of {vcpus} processors are far smaller than their area");
        memory.write_slice(bytes, GuestAddress(at))?;
        Ok(at)
    };
    let dsdt = place(dsdt().as_slice())?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for table in [bytes(&fadt(dsdt)), bytes(&madt(vcpus)), bytes(&mcfg())] {
        xsdt.add_entry(place(&table)?);
    }
    let xsdt = place(&bytes(&xsdt))?;
    memory.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(rsdp_at))?;
    Ok(GuestAddress(rsdp_at))
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn io_register(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup);
    // No VGA, no CMOS clock: do not probe for either (ACPI 6.5 §5.2.9.3).
    fadt.iapc_boot_arch = ((1u16 << 2) | (1 << 5)).into();
    fadt.reset_reg = io_register(layout::POWER);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = io_register(layout::POWER + 1);
    fadt.sleep_status_reg = io_register(layout::POWER + 2);
    fadt.finalize()
}

fn madt(vcpus: u8) -> madt::MADT {
    let address = madt::LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut table = madt::MADT::new(OEM, TABLE, REVISION, address);
    for id in 0..vcpus {
        table.add_structure(madt::ProcessorLocalApic::new(id, id, madt::EnabledStatus::Enabled));
    }
    let ioapic = u32::try_from(layout::IOAPIC).expect("the address is below 4 GiB");
    table.add_structure(madt::IoApic::new(IOAPIC_ID, ioapic, 0));
    table
}

fn mcfg() -> MCFG {
    let mut table = MCFG::new(OEM, TABLE, REVISION);
    table.add_ecam(layout::ECAM, 0, 0, 0);
    table
}

fn dsdt() -> Sdt {
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    for part in [pci_root(), motherboard(), serial(), soft_off()] {
        table.append_slice(&part);
    }
    table
}

/// The host bridge: one bus and the two windows for BARs.
fn pci_root() -> Vec<u8> {
    let (pci32, pci32_end) = (below_4g(layout::PCI32), below_4g(layout::PCI32 + layout::PCI32_SIZE - 1));
    let pci64_end = layout::PCI64 + layout::PCI64_SIZE - 1;
    let uncached = aml::AddressSpaceCacheable::NotCacheable;
    // INTA of any slot (ACPI 6.5 §6.2.13): address, pin, no link device, GSI.
    let slots: Vec<u32> = (1..32).map(|slot| slot << 16 | 0xffff).collect();
    let routes: Vec<_> = slots
        .iter()
        .map(|slot| aml::Package::new(vec![slot, &aml::ZERO, &aml::ZERO, &layout::PCI_GSI]))
        .collect();
    let routes = aml::Package::new(routes.iter().map(|route| route as &dyn Aml).collect());
    let pins = aml::Name::new("_PRT".into(), &routes);
    bytes(&aml::Device::new(
        "_SB_.PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_SEG".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::AddressSpace::new_bus_number(0u16, 0u16),
                    &aml::AddressSpace::new_memory(uncached, true, pci32, pci32_end, None),
                    &aml::AddressSpace::new_memory(uncached, true, layout::PCI64, pci64_end, None),
                ]),
            ),
            &pins,
        ],
    ))
}

/// ECAM must be claimed by a motherboard resource or the kernel does not use it (PCI Firmware 3.2 §4.1.2).
fn motherboard() -> Vec<u8> {
    let ecam = aml::Memory32Fixed::new(true, below_4g(layout::ECAM), below_4g(layout::ECAM_SIZE));
    bytes(&aml::Device::new(
        "_SB_.MBRD".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&ecam])),
        ],
    ))
}

fn serial() -> Vec<u8> {
    let ports = u8::try_from(layout::SERIAL_SIZE).expect("eight ports");
    bytes(&aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
                    &aml::IO::new(layout::SERIAL, layout::SERIAL, 0, ports),
                ]),
            ),
        ],
    ))
}

/// What to write into SLP_TYP to power off.
fn soft_off() -> Vec<u8> {
    let package = aml::Package::new(vec![&SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    bytes(&aml::Name::new("_S5_".into(), &package))
}

fn below_4g(value: u64) -> u32 {
    u32::try_from(value).expect("the address map keeps it below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_sums_to_zero() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let rsdp = write(&memory, 64).unwrap();
        let sum = |at: u64, length: usize| {
            let mut table = vec![0u8; length];
            memory.read_slice(&mut table, GuestAddress(at)).unwrap();
            table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b))
        };
        assert_eq!(sum(rsdp.0, 20), 0);
        assert_eq!(sum(rsdp.0, 36), 0);
        let xsdt: u64 = memory.read_obj(GuestAddress(rsdp.0 + 24)).unwrap();
        let length: u32 = memory.read_obj(GuestAddress(xsdt + 4)).unwrap();
        assert_eq!(sum(xsdt, length as usize), 0);
        for entry in 0..3 {
            let table: u64 = memory.read_obj(GuestAddress(xsdt + 36 + 8 * entry)).unwrap();
            let length: u32 = memory.read_obj(GuestAddress(table + 4)).unwrap();
            assert_eq!(sum(table, length as usize), 0, "table {entry}");
        }
    }
}
