//! A type 0 configuration header (PCI Local Bus 3.0 §6.1): identity, command register, base address registers
//! and the list of capabilities. 256 bytes; extended space reads as zero, which says "no capabilities".

use super::function::Bar;
use super::function::ConfigEffects;

/// Registers of a type 0 header.
const VENDOR: usize = 0x00;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const BARS: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// First byte after the header.
const FIRST_CAPABILITY: usize = 0x40;

/// Command register: memory space, bus master and interrupt disable are writable.
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_WRITABLE: [u8; 2] = [0x06, 0x04];
/// Status register: there is a capabilities list.
const STATUS_CAPABILITIES: u8 = 1 << 4;

const SIZE: usize = 256;
const BAR_COUNT: usize = 6;

/// What a function is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Class, subclass and programming interface: 0xCCSSPP.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// The header and its state.
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: [Option<BarRegister>; BAR_COUNT],
    next_capability: usize,
    last_capability: usize,
}

#[derive(Clone, Copy)]
struct BarRegister {
    size: u64,
    is_64bit: bool,
}

impl ConfigSpace {
    /// A header with the given registers, none of them decoded.
    pub fn new(identity: Identity, bars: &[Bar]) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: [None; BAR_COUNT],
            next_capability: FIRST_CAPABILITY,
            last_capability: CAPABILITIES,
        };
        space.put(VENDOR, &identity.vendor.to_le_bytes());
        space.put(VENDOR + 2, &identity.device.to_le_bytes());
        space.put(REVISION, &[identity.revision]);
        space.put(REVISION + 1, &identity.class.to_le_bytes()[..3]);
        space.put(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        space.put(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE);
        for bar in bars {
            space.add_bar(bar);
        }
        space
    }

    fn add_bar(&mut self, bar: &Bar) {
        assert!(bar.size.is_power_of_two() && bar.size >= 4096, "BAR sizes are fixed by the device models");
        let at = BARS + 4 * usize::from(bar.index);
        self.bytes[at] = u8::from(bar.is_64bit) << 2 | u8::from(bar.prefetchable) << 3;
        // Address bits below the size are wired to zero: that is how the driver finds the size.
        let mask = !(bar.size - 1);
        let width = if bar.is_64bit { 8 } else { 4 };
        self.writable[at..at + width].copy_from_slice(&mask.to_le_bytes()[..width]);
        self.bars[usize::from(bar.index)] = Some(BarRegister { size: bar.size, is_64bit: bar.is_64bit });
    }

    /// Appends a capability: its id, then what follows the next pointer. Returns its offset. `writable` has
    /// a bit for each bit of `body` the driver may change, or is empty for none.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let offset = u8::try_from(self.next_capability).expect("the capabilities of our devices fit");
        self.add_capability_at(offset, id, body, writable);
        offset
    }

    /// Appends a capability at an offset of the caller's choice, behind every one before it: it and `body` lie
    /// between the header and the end.
    pub fn add_capability_at(&mut self, offset: u8, id: u8, body: &[u8], writable: &[u8]) {
        let at = usize::from(offset);
        assert!(at >= FIRST_CAPABILITY && at + 2 + body.len() <= SIZE, "checked by the caller");
        self.bytes[self.last_capability] = offset;
        self.last_capability = at + 1;
        self.bytes[at] = id;
        self.put(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
    }

    /// Says that the function interrupts through a pin (1 is INTA). The line is the driver's to note.
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.bytes[INTERRUPT_PIN] = pin;
        self.writable[INTERRUPT_LINE] = 0xff;
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads registers; past the 256 bytes there is nothing, which reads as zero.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(usize::from(offset) + i).copied().unwrap_or(0);
        }
    }

    /// Writes the writable bits, and says which BARs are decoded elsewhere now.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigEffects {
        let before: Vec<_> = (0..BAR_COUNT).map(|bar| self.decoded(bar)).collect();
        for (i, &byte) in data.iter().enumerate() {
            let at = usize::from(offset) + i;
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = (*old & !mask) | (byte & mask);
            }
        }
        let moved = before
            .into_iter()
            .enumerate()
            .map(|(bar, before)| (u8::try_from(bar).expect("below 6"), before, self.decoded(bar)))
            .filter(|(_, before, now)| before != now)
            .collect();
        ConfigEffects { moved }
    }

    /// All registers.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes over what [`ConfigSpace::save`] gave of a function that was made in the same way, and says which BARs are
    /// decoded now. `None`, and nothing changed, if it is of another function.
    pub fn restore(&mut self, bytes: &[u8]) -> Option<ConfigEffects> {
        let same = |((new, old), mask): ((&u8, &u8), &u8)| (new ^ old) & !mask == 0;
        let is_ours = bytes.len() == SIZE && bytes.iter().zip(&self.bytes).zip(&self.writable).all(same);
        is_ours.then(|| self.write(0, bytes))
    }

    /// Where a BAR is decoded, if memory space is enabled.
    fn decoded(&self, bar: usize) -> Option<u64> {
        let register = self.bars[bar]?;
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return None;
        }
        let at = BARS + 4 * bar;
        let mut bytes = [0; 8];
        let width = if register.is_64bit { 8 } else { 4 };
        bytes[..width].copy_from_slice(&self.bytes[at..at + width]);
        Some(u64::from_le_bytes(bytes) & !(register.size - 1))
    }

    /// Sets a BAR's address as firmware would; it is decoded once the driver enables memory space.
    pub fn place_bar(&mut self, bar: u8, address: u64) {
        let Some(register) = self.bars.get(usize::from(bar)).copied().flatten() else { return };
        let at = BARS + 4 * usize::from(bar);
        let width = if register.is_64bit { 8 } else { 4 };
        let flags = self.bytes[at] & 0xf;
        self.put(at, &address.to_le_bytes()[..width]);
        self.bytes[at] = (self.bytes[at] & 0xf0) | flags;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        let bar = Bar { index: 0, size: 0x8000, is_64bit: true, prefetchable: false, regions: Vec::new() };
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        };
        ConfigSpace::new(identity, &[bar])
    }

    fn read32(space: &ConfigSpace, offset: u16) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_driver_finds_the_size_of_a_bar() {
        let mut space = space();
        space.place_bar(0, 0x40_0000_0000);
        assert_eq!((read32(&space, 0x10), read32(&space, 0x14)), (4, 0x40));
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!((read32(&space, 0x10), read32(&space, 0x14)), (0xffff_8004, 0xffff_ffff));
        space.write(0x18, &[0xff; 4]);
        assert_eq!(read32(&space, 0x18), 0, "no such register");
    }

    #[test]
    fn enabling_memory_space_decodes_and_moving_moves() {
        let mut space = space();
        space.place_bar(0, 0x1_0000);
        assert_eq!(space.write(0x04, &[2, 0]).moved, [(0, None, Some(0x1_0000))]);
        assert_eq!(
            space.write(0x10, &0x2_0000u32.to_le_bytes()).moved,
            [(0, Some(0x1_0000), Some(0x2_0000))]
        );
        assert_eq!(space.write(0x04, &[0, 0]).moved, [(0, Some(0x2_0000), None)]);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3], &[]);
        let second = space.add_capability(0x11, &[4, 5], &[0xff, 0]);
        let mut header = [0; 256];
        space.read(0, &mut header);
        assert_eq!(header[0x34], first);
        assert_eq!(header[usize::from(first)..][..5], [9, second, 1, 2, 3]);
        assert_eq!(header[usize::from(second)..][..4], [0x11, 0, 4, 5]);
        space.write(u16::from(second) + 2, &[9, 9]);
        space.read(0, &mut header);
        assert_eq!(header[usize::from(second) + 2..][..2], [9, 5]);
    }

    proptest! {
        #[test]
        fn no_write_changes_who_the_function_is(
            writes in prop::collection::vec((0u16..4096, prop::collection::vec(any::<u8>(), 1..5)), 0..64)
        ) {
            let mut space = space();
            let identity = read32(&space, 0);
            for (offset, data) in writes {
                for (bar, _, now) in space.write(offset, &data).moved {
                    prop_assert_eq!(bar, 0);
                    prop_assert!(now.is_none_or(|address| address % 0x8000 == 0));
                }
            }
            prop_assert_eq!(read32(&space, 0), identity);
        }
    }
}
