//! A passed function driven through configuration space and BARs, the host's side of it made of memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::Device;
use super::Interrupt;
use super::Mapping;
use super::Region;
use super::VfioError;
use super::VfioFunction;
use super::device;
use crate::bus::BusDevice;
use crate::ioapic::IoApic;
use crate::platform::MsiMessage;
use crate::testing::FakePlatform;
use crate::testing::Machine;

/// A function: registers in BAR 0, an MSI-X table and its pending bits in the same BAR, MSI, a small BAR 2.
struct Fake {
    config: Mutex<Vec<u8>>,
    files: [File; 3],
    connected: Mutex<Option<(Interrupt, Vec<EventFd>)>>,
    resets: Mutex<u32>,
    unmasked: Mutex<u32>,
    refusing: Mutex<bool>,
}

const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_1000, data: 0x55 };
const MSIX: u16 = 0x70;
const MSI: u16 = 0x50;
const EXPRESS: u16 = 0x80;
const VENDOR: u16 = 0xc0;

impl Fake {
    fn new() -> Arc<Self> {
        let mut config = vec![0; 256];
        config[..4].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11]);
        config[0x06] = 0x10;
        // 64-bit, and a small one of 32 bits.
        config[0x10] = 4;
        config[0x34] = 0x50;
        config[0x50..0x54].copy_from_slice(&[0x05, 0x70, 0x82, 0]);
        config[0x70..0x7c].copy_from_slice(&[0x11, 0x80, 2, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
        config[0x80..0x84].copy_from_slice(&[0x10, 0xc0, 2, 0]);
        config[0xc0..0xc8].copy_from_slice(&[0x09, 0, 8, 1, 2, 3, 4, 5]);
        let file = |bytes| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(bytes).unwrap();
            file
        };
        Arc::new(Self {
            config: Mutex::new(config),
            files: [file(0x4000), file(0), file(0x1000)],
            connected: Mutex::default(),
            resets: Mutex::default(),
            unmasked: Mutex::default(),
            refusing: Mutex::default(),
        })
    }

    fn signal(&self, interrupt: usize) {
        self.connected.lock().as_ref().unwrap().1[interrupt].write(1).unwrap();
    }

    fn command(&self) -> u16 {
        let config = self.config.lock();
        u16::from_le_bytes([config[4], config[5]])
    }

    fn connected(&self) -> Option<(Interrupt, usize)> {
        self.connected.lock().as_ref().map(|(kind, events)| (*kind, events.len()))
    }
}

impl Device for Fake {
    fn region(&self, index: u32) -> io::Result<Region> {
        Ok(match index {
            0 => Region { size: 0x4000, mappable: vec![(0, 0x4000)] },
            2 => Region { size: 0x100, mappable: vec![(0, 0x100)] },
            _ => Region::default(),
        })
    }
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if region == device::CONFIG {
            let at = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.config.lock()[at..at + data.len()]);
            return Ok(());
        }
        self.files[usize::try_from(region).unwrap()].read_exact_at(data, offset)
    }
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if region == device::CONFIG {
            let at = usize::try_from(offset).unwrap();
            self.config.lock()[at..at + data.len()].copy_from_slice(data);
            return Ok(());
        }
        self.files[usize::try_from(region).unwrap()].write_all_at(data, offset)
    }
    fn map(&self, region: u32, offset: u64, length: u64) -> io::Result<Mapping> {
        Mapping::of(&self.files[usize::try_from(region).unwrap()], offset, length)
    }
    fn interrupts(&self, _: Interrupt) -> io::Result<u32> {
        Ok(0)
    }
    fn connect(&self, kind: Interrupt, events: &[&EventFd]) -> io::Result<()> {
        if *self.refusing.lock() {
            return Err(io::Error::other("the test refuses"));
        }
        let mut connected = self.connected.lock();
        assert!(connected.is_none(), "one kind at a time");
        *connected = Some((kind, events.iter().map(|event| event.try_clone().unwrap()).collect()));
        Ok(())
    }
    fn disconnect(&self, kind: Interrupt) -> io::Result<()> {
        assert_eq!(self.connected.lock().take().map(|(kind, _)| kind), Some(kind));
        Ok(())
    }
    fn unmask_intx(&self) -> io::Result<()> {
        *self.unmasked.lock() += 1;
        Ok(())
    }
    fn can_reset(&self) -> bool {
        true
    }
    fn reset(&self) -> io::Result<()> {
        *self.resets.lock() += 1;
        Ok(())
    }
}

const PIN: u32 = 16;

fn take(platform: &Arc<FakePlatform>, fake: &Arc<Fake>) -> (IoApic, Result<Arc<VfioFunction>, VfioError>) {
    let interrupts = platform.platform().interrupts;
    let ioapic = IoApic::new(interrupts.as_ref()).unwrap();
    let function = VfioFunction::new(fake.clone(), interrupts.as_ref(), (&ioapic, PIN));
    (ioapic, function)
}

fn plug(fake: Arc<Fake>) -> (Machine, Arc<Fake>, u8) {
    let machine = Machine::new();
    let (_, function) = take(&machine.platform, &fake);
    let slot = machine.insert(function.unwrap());
    (machine, fake, slot)
}

fn plugged() -> (Machine, Arc<Fake>, u8) {
    plug(Fake::new())
}

/// Where the 64-bit BAR 0 is.
fn bar0(machine: &Machine, slot: u8) -> u64 {
    (machine.read_config(slot, 0x10, 4) & !0xf) | machine.read_config(slot, 0x14, 4) << 32
}

fn enable(machine: &Machine, slot: u8) {
    machine.write_config(slot, 0x04, 2, 0x06);
}

/// Unmasks a vector of the table.
fn open(machine: &Machine, table: u64, vector: u64, message: MsiMessage) {
    machine.write(table + 16 * vector, 8, message.address);
    machine.write(table + 16 * vector + 8, 4, message.data.into());
    machine.write(table + 16 * vector + 12, 4, 0);
}

#[test]
fn registers_are_mapped_and_the_table_is_trapped() {
    let (machine, fake, slot) = plugged();
    assert!(machine.platform.mappings().is_empty(), "not before memory space is enabled");
    enable(&machine, slot);
    let at = bar0(&machine, slot);
    let mappings = machine.platform.mappings();
    assert_eq!(mappings.len(), 1);
    assert_eq!((mappings[0].guest_address, mappings[0].length), (at, 0x2000));
    // The rest of the table's page is the function's, through the kernel.
    machine.write(at + 0x2800, 4, 0xdead_beef);
    assert_eq!(machine.read(at + 0x2800, 4), 0xdead_beef);
    let mut real = [0; 4];
    fake.files[0].read_exact_at(&mut real, 0x2800).unwrap();
    assert_eq!(u32::from_le_bytes(real), 0xdead_beef);
    // The table is ours.
    machine.write(at + 0x2008, 4, 0x77);
    assert_eq!(machine.read(at + 0x2008, 4), 0x77);
    fake.files[0].read_exact_at(&mut real, 0x2008).unwrap();
    assert_eq!(u32::from_le_bytes(real), 0);
}

#[test]
fn moving_the_bar_moves_the_mapping() {
    let (machine, _, slot) = plugged();
    enable(&machine, slot);
    let before = bar0(&machine, slot);
    machine.write_config(slot, 0x10, 4, (before & 0xffff_ffff) + 0x10_0000);
    assert_eq!(machine.platform.mappings()[0].guest_address, before + 0x10_0000);
    machine.write_config(slot, 0x04, 2, 0);
    assert!(machine.platform.mappings().is_empty());
}

#[test]
fn a_bar_smaller_than_a_page_ends_where_it_ends() {
    let (machine, fake, slot) = plugged();
    machine.write_config(slot, 0x18, 4, 0xffff_ffff);
    assert_eq!(machine.read_config(slot, 0x18, 4), 0xffff_f000);
    machine.write_config(slot, 0x18, 4, 0xc010_0000);
    enable(&machine, slot);
    assert_eq!(machine.platform.mappings().len(), 1, "BAR 0 only");
    machine.write(0xc010_0010, 2, 0x1234);
    let mut real = [0; 2];
    fake.files[2].read_exact_at(&mut real, 0x10).unwrap();
    assert_eq!(u16::from_le_bytes(real), 0x1234);
    assert_eq!(machine.read(0xc010_00fe, 4), 0xffff_ffff, "straddles the end");
    machine.write(0xc010_0200, 4, 1);
    assert_eq!(machine.read(0xc010_0200, 4), 0xffff_ffff);
}

#[test]
fn msix_interrupts_go_where_the_guest_says() {
    let (machine, fake, slot) = plugged();
    enable(&machine, slot);
    let table = bar0(&machine, slot) + 0x2000;
    machine.write_config(slot, MSIX + 2, 2, 0xc000);
    assert_eq!(fake.connected(), Some((Interrupt::Msix, 3)));
    open(&machine, table, 2, MESSAGE);
    fake.signal(2);
    machine.platform.deliver();
    assert_eq!(machine.platform.count(MESSAGE), 0, "the whole function is masked");
    assert_eq!(machine.read(table + 0x1000, 8), 4, "pending");
    machine.write_config(slot, MSIX + 2, 2, 0x8000);
    machine.platform.deliver();
    assert_eq!(machine.platform.count(MESSAGE), 1);
    machine.write_config(slot, MSIX + 2, 2, 0);
    assert_eq!(fake.connected(), None);
}

#[test]
fn msi_is_routed_by_number_and_gives_way_to_msix() {
    let (machine, fake, slot) = plugged();
    machine.write_config(slot, MSI + 4, 4, MESSAGE.address);
    machine.write_config(slot, MSI + 0xc, 2, 0x54);
    machine.write_config(slot, MSI + 2, 2, 0x11);
    assert_eq!(fake.connected(), Some((Interrupt::Msi, 2)));
    fake.signal(1);
    machine.platform.deliver();
    assert_eq!(machine.platform.count(MESSAGE), 1);
    machine.write_config(slot, MSI + 0xc, 2, 0x64);
    fake.signal(1);
    machine.platform.deliver();
    assert_eq!(machine.platform.count(MsiMessage { data: 0x65, ..MESSAGE }), 1);
    machine.write_config(slot, MSIX + 2, 2, 0x8000);
    assert_eq!(fake.connected(), Some((Interrupt::Msix, 3)));
}

#[test]
fn the_command_register_is_the_guests_but_for_memory_space() {
    let (machine, fake, slot) = plugged();
    assert_eq!(fake.command(), 2);
    machine.write_config(slot, 0x04, 2, 0xffff);
    assert_eq!((fake.command(), machine.read_config(slot, 0x04, 2)), (0x0406, 0x0406));
    machine.write_config(slot, 0x04, 2, 0);
    assert_eq!((fake.command(), machine.read_config(slot, 0x04, 2)), (2, 0));
}

#[test]
fn vendor_registers_are_the_functions_own() {
    let (machine, fake, slot) = plugged();
    assert_eq!(machine.read_config(slot, VENDOR, 4), 0x0108_0009);
    machine.write_config(slot, VENDOR + 4, 4, 0x0908_0706);
    assert_eq!(fake.config.lock()[0xc4..0xc8], [6, 7, 8, 9]);
    machine.write_config(slot, VENDOR, 2, 0xffff);
    assert_eq!(fake.config.lock()[0xc0..0xc2], [9, 0], "not where the list goes on");
}

#[test]
fn a_guests_reset_resets_the_function_and_all_it_had_set_up() {
    let (machine, fake, slot) = plugged();
    enable(&machine, slot);
    machine.write_config(slot, MSIX + 2, 2, 0x8000);
    assert_eq!(*fake.resets.lock(), 0, "who opened it has reset it");
    machine.write_config(slot, EXPRESS + 8, 2, 0x8000);
    assert_eq!((*fake.resets.lock(), fake.connected()), (1, None));
    assert!(machine.platform.mappings().is_empty());
    assert_eq!((machine.read_config(slot, 0x04, 2), fake.command()), (0, 2));
    assert_eq!(machine.read_config(slot, MSIX + 2, 2), 2);
}

#[test]
fn unplugging_gives_everything_back() {
    let (machine, fake, slot) = plugged();
    enable(&machine, slot);
    machine.write_config(slot, MSIX + 2, 2, 0x8000);
    open(&machine, bar0(&machine, slot) + 0x2000, 0, MESSAGE);
    machine.segment.remove(slot);
    assert_eq!((fake.connected(), *fake.resets.lock(), fake.command()), (None, 1, 2));
    assert!(machine.platform.mappings().is_empty());
    assert_eq!((machine.platform.vectors(), Arc::strong_count(&fake)), (0, 1));
}

#[test]
fn interrupts_the_host_refuses_leave_a_silent_function() {
    let (machine, fake, slot) = plugged();
    *fake.refusing.lock() = true;
    machine.write_config(slot, MSIX + 2, 2, 0x8000);
    assert_eq!(fake.connected(), None);
    *fake.refusing.lock() = false;
    machine.write_config(slot, MSIX + 2, 2, 0);
    machine.write_config(slot, MSIX + 2, 2, 0x8000);
    assert_eq!(fake.connected(), Some((Interrupt::Msix, 3)));
}

#[test]
fn a_bridge_is_refused() {
    let (platform, fake) = (FakePlatform::new(), Fake::new());
    fake.config.lock()[0x0e] = 1;
    assert!(matches!(take(&platform, &fake).1.err(), Some(VfioError::Bridge)));
}

#[test]
fn a_table_outside_its_bar_is_no_table() {
    let fake = Fake::new();
    fake.config.lock()[0x74..0x78].copy_from_slice(&0x3ff8u32.to_le_bytes());
    let (machine, fake, slot) = plug(fake);
    machine.write_config(slot, MSIX + 2, 2, 0x8000);
    assert_eq!(fake.connected(), None);
}

#[test]
fn a_function_with_only_a_pin_pulls_it_until_the_interrupt_ends() {
    let (machine, fake) = (Machine::new(), Fake::new());
    {
        let mut config = fake.config.lock();
        config[0x34] = 0xc0;
        config[0x3d] = 2;
    }
    let (ioapic, function) = take(&machine.platform, &fake);
    let slot = machine.insert(function.unwrap());
    assert_eq!(machine.read_config(slot, 0x3c, 2), 0x100, "INTA, whatever its pin is on the host");
    assert_eq!(fake.connected(), Some((Interrupt::Intx, 1)));
    fake.signal(0);
    machine.platform.deliver();
    let message = MsiMessage { address: 0xfee0_0000, data: 0xc051 };
    assert_eq!(machine.platform.count(message), 0, "the pin is masked");
    for (register, value) in [(0x31u8, 0u32), (0x30, 0x8051)] {
        ioapic.write(0x00, &[register]).unwrap();
        ioapic.write(0x10, &value.to_le_bytes()).unwrap();
    }
    machine.platform.deliver();
    assert_eq!((machine.platform.count(message), *fake.unmasked.lock()), (1, 0));
    fake.config.lock()[0x06] |= 1 << 3;
    assert_eq!(machine.read_config(slot, 0x06, 2), 0x18, "it was this function");
    ioapic.eoi(0x51);
    assert_eq!(*fake.unmasked.lock(), 1);
    machine.segment.remove(slot);
    assert_eq!(fake.connected(), None);
    ioapic.eoi(0x51);
    assert_eq!(*fake.unmasked.lock(), 1, "it is gone");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn whatever_a_driver_does_it_ends_with_an_unplugged_function(
        accesses in prop::collection::vec((0u8..3, any::<u16>(), 0usize..3, any::<u32>()), 0..200),
    ) {
        let (machine, fake, slot) = plugged();
        for (kind, offset, width, value) in accesses {
            let width = 1 << width;
            let aligned = offset / width * width;
            let (address, width) = match kind {
                // Mostly what there is: the header and the capabilities.
                0 => (Machine::ECAM + u64::from(slot) * 0x8000 + u64::from(aligned & 0xff), width),
                1 => (bar0(&machine, slot).wrapping_add(u64::from(offset)), width),
                _ => (u64::from(value) & !0xf, width),
            };
            machine.write(address, width.into(), value.into());
            machine.read(address, width.into());
            if offset % 7 == 0 && fake.connected().is_some() {
                fake.signal(0);
                machine.platform.deliver();
            }
            prop_assert_ne!(fake.command() & 2, 0, "memory space stays on");
        }
        machine.segment.remove(slot);
        prop_assert_eq!((fake.connected(), fake.command()), (None, 2));
        prop_assert!(machine.platform.mappings().is_empty());
        prop_assert_eq!((machine.platform.vectors(), Arc::strong_count(&fake)), (0, 1));
    }
}
