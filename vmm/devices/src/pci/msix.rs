//! MSI-X (PCI Local Bus 3.0 §6.8.2): the vector table, masks and pending bits of one function.
//!
//! Lock order: the table, then a vector.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;
use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::AccessError;
use crate::log_limit::LogLimit;
use crate::platform::MsiMessage;
use crate::platform::MsiVector;

/// Bytes of a table entry.
pub const ENTRY_SIZE: u64 = 16;
/// Message control bits.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector control bit.
const MASK: u32 = 1;
/// What of message control the driver may write.
pub const CONTROL_WRITABLE: u16 = ENABLE | FUNCTION_MASK;
/// Capability id.
pub const CAPABILITY: u8 = 0x11;

static REFUSALS: LogLimit = LogLimit::new();

/// The table; shared by the function, which decodes accesses, and the device, which raises interrupts.
pub struct Msix(Mutex<Table>);

/// The table as a plain value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    control: u16,
    /// What the driver wrote, and whether it is pending.
    entries: Vec<([u32; 4], bool)>,
}

struct Table {
    control: u16,
    /// Something outside this process signals the vectors' eventfds (VFIO), and does not ask first: so a masked
    /// vector must not be routed. The event then waits in the eventfd, which is the pending bit.
    external: bool,
    entries: Vec<Entry>,
}

struct Entry {
    /// Address low, address high, data, vector control.
    words: [u32; 4],
    pending: bool,
    /// What the vector sends. Kept while masked: a driver masks a vector around each change of its message,
    /// and taking a route away and setting it up again is slow. Only [`Msix::trigger`] raises the vector, and
    /// not while it is masked.
    routed: Option<MsiMessage>,
    /// Enabled, not masked, and its message is routed.
    open: bool,
    vector: Arc<dyn MsiVector>,
}

impl Msix {
    /// One entry a vector, all masked, the capability disabled.
    pub fn new(vectors: Vec<Arc<dyn MsiVector>>) -> Self {
        Self::with(vectors, false)
    }

    /// The same for a function whose interrupts something else signals, through the vectors' eventfds.
    pub fn of_external(vectors: Vec<Arc<dyn MsiVector>>) -> Self {
        Self::with(vectors, true)
    }

    fn with(vectors: Vec<Arc<dyn MsiVector>>, external: bool) -> Self {
        let entry =
            |vector| Entry { words: [0, 0, 0, MASK], pending: false, routed: None, open: false, vector };
        Self(Mutex::new(Table { control: 0, external, entries: vectors.into_iter().map(entry).collect() }))
    }

    /// Calls `f` with the eventfd of each vector. Nothing changes in the table meanwhile.
    pub fn with_events<T>(&self, f: impl FnOnce(&[&EventFd]) -> T) -> T {
        let table = self.0.lock();
        let events: Vec<&EventFd> = table.entries.iter().map(|entry| entry.vector.eventfd()).collect();
        f(&events)
    }

    /// The capability's body after id and next pointer, and which of its bits are writable. Table and pending
    /// bits are in BAR `bar` at the given offsets, multiples of 8.
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> ([u8; 10], [u8; 10]) {
        let last = u16::try_from(self.0.lock().entries.len() - 1).expect("at most 2048 vectors");
        let (mut body, mut writable) = ([0; 10], [0; 10]);
        body[..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        writable[..2].copy_from_slice(&CONTROL_WRITABLE.to_le_bytes());
        (body, writable)
    }

    /// The driver wrote message control.
    pub fn set_control(&self, control: u16) {
        let mut table = self.0.lock();
        let control = control & CONTROL_WRITABLE;
        if table.control != control {
            table.control = control;
            (0..table.entries.len()).for_each(|index| table.update(index));
        }
    }

    /// Raises vector `index`; while it is masked the interrupt is kept pending. Vectors that do not exist are
    /// ignored (the driver may name any).
    pub fn trigger(&self, index: u16) {
        let mut table = self.0.lock();
        let enabled = table.control & ENABLE != 0;
        if let Some(entry) = table.entries.get_mut(usize::from(index)) {
            if entry.open {
                entry.raise();
            } else if enabled {
                entry.pending = true;
            }
        }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.0.lock().entries.len()).expect("at most 2048 vectors")
    }

    /// Reads the table; aligned words of 4 or 8 bytes (PCI 3.0 §6.8.2).
    pub fn read_table(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let table = self.0.lock();
        each_word(offset, data.len(), |index, word, at| {
            let value = table.entries.get(index).map_or(0, |e| e.words[word]);
            data[at..at + 4].copy_from_slice(&value.to_le_bytes());
        })
    }

    /// Writes the table; aligned words of 4 or 8 bytes.
    pub fn write_table(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut table = self.0.lock();
        each_word(offset, data.len(), |index, word, at| {
            let value = u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
            if let Some(entry) = table.entries.get_mut(index) {
                entry.set_word(word, value);
                table.update(index);
            }
        })
    }

    /// Reads the pending bits; aligned words of 4 or 8 bytes.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let width = data.len();
        if !matches!(width, 4 | 8) || !offset.is_multiple_of(width as u64) {
            return Err(AccessError::Width { offset, width });
        }
        let table = self.0.lock();
        for (i, byte) in data.iter_mut().enumerate() {
            let first = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(i).saturating_mul(8);
            let bit = |n: usize| table.entries.get(first + n).is_some_and(|e| e.is_pending(table.external));
            *byte = if first < table.entries.len() { (0..8).map(|n| u8::from(bit(n)) << n).sum() } else { 0 };
        }
        Ok(())
    }

    /// Masks everything and forgets what was pending, as a reset of the function does.
    pub fn reset(&self) {
        let mut table = self.0.lock();
        table.control = 0;
        for index in 0..table.entries.len() {
            table.entries[index].words = [0, 0, 0, MASK];
            table.entries[index].pending = false;
            table.update(index);
            table.entries[index].disconnect();
            if table.external {
                table.entries[index].forget();
            }
        }
    }

    /// The table as it is.
    pub fn save(&self) -> MsixState {
        let table = self.0.lock();
        let entry = |entry: &Entry| (entry.words, entry.pending);
        MsixState { control: table.control, entries: table.entries.iter().map(entry).collect() }
    }

    /// Takes over what [`Msix::save`] gave, and delivers what was pending and may be. False, and nothing changed, if
    /// it is of a table of another size.
    pub fn restore(&self, state: &MsixState) -> bool {
        let mut table = self.0.lock();
        if state.entries.len() != table.entries.len() {
            return false;
        }
        table.control = state.control & CONTROL_WRITABLE;
        for (index, &(words, pending)) in state.entries.iter().enumerate() {
            let entry = &mut table.entries[index];
            for (word, value) in words.into_iter().enumerate() {
                entry.set_word(word, value);
            }
            entry.pending = pending;
            table.update(index);
        }
        true
    }

    /// Whether the driver has enabled MSI-X.
    pub fn is_enabled(&self) -> bool {
        self.0.lock().control & ENABLE != 0
    }
}

impl Table {
    /// Brings an entry in line with its masks and its message, and delivers what was pending.
    fn update(&mut self, index: usize) {
        let open = self.control & (ENABLE | FUNCTION_MASK) == ENABLE;
        let entry = &mut self.entries[index];
        let [low, high, data, control] = entry.words;
        let address = u64::from(high) << 32 | u64::from(low);
        let wanted = (open && control & MASK == 0).then_some(MsiMessage { address, data });
        if wanted.is_none() && self.external {
            entry.disconnect();
        }
        if wanted.is_some() && wanted != entry.routed {
            match entry.vector.route(wanted) {
                Ok(()) => entry.routed = wanted,
                Err(e) => {
                    entry.routed = None;
                    // The message is the driver's, so it can make this happen at will.
                    if REFUSALS.allows() {
                        tracing::warn!("MSI-X vector {index} cannot be {wanted:x?}: {e}");
                    }
                }
            }
        }
        entry.open = wanted.is_some() && wanted == entry.routed;
        if entry.pending && entry.open {
            entry.pending = false;
            entry.raise();
        }
    }
}

impl Entry {
    fn set_word(&mut self, word: usize, value: u32) {
        self.words[word] = match word {
            0 => value & !3,
            3 => value & MASK,
            _ => value,
        };
    }

    fn disconnect(&mut self) {
        if self.routed.take().is_some()
            && let Err(e) = self.vector.route(None)
        {
            tracing::error!("an MSI-X vector stays routed: {e}");
        }
    }

    fn is_pending(&self, external: bool) -> bool {
        // Looking takes the event, so it is put back.
        let waits = |event: &EventFd| event.read().is_ok() && event.write(1).is_ok();
        self.pending || external && self.routed.is_none() && waits(self.vector.eventfd())
    }

    /// Drops what an eventfd holds.
    fn forget(&self) {
        // Nothing in it is an error, and the wish.
        let _ = self.vector.eventfd().read();
    }

    fn raise(&self) {
        // The only error is a full eventfd counter, and then the interrupt is on its way.
        let _ = self.vector.trigger();
    }
}

/// Calls `f(entry, word, offset in data)` for each word of an aligned access.
fn each_word(offset: u64, width: usize, mut f: impl FnMut(usize, usize, usize)) -> Result<(), AccessError> {
    if !matches!(width, 4 | 8) || !offset.is_multiple_of(width as u64) {
        return Err(AccessError::Width { offset, width });
    }
    for at in (0..width).step_by(4) {
        let word = usize::try_from(offset / 4).unwrap_or(usize::MAX).saturating_add(at / 4);
        f(word / 4, word % 4, at);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakePlatform;
    use proptest::prelude::*;

    const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_1000, data: 0x55 };

    fn table(vectors: u16) -> (Arc<FakePlatform>, Msix) {
        let platform = FakePlatform::new();
        let msix = Msix::new(platform.platform().interrupts.vectors(vectors).unwrap());
        (platform, msix)
    }

    fn write(msix: &Msix, offset: u64, value: u32) {
        msix.write_table(offset, &value.to_le_bytes()).unwrap();
    }

    fn open(msix: &Msix, vector: u64) {
        write(msix, 16 * vector, 0xfee0_1000);
        write(msix, 16 * vector + 8, 0x55);
        write(msix, 16 * vector + 12, 0);
    }

    fn pending(msix: &Msix) -> u32 {
        let mut data = [0; 4];
        msix.read_pending(0, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    #[test]
    fn what_comes_while_masked_is_pending_and_sent_at_unmask() {
        let (platform, msix) = table(2);
        msix.set_control(ENABLE);
        msix.trigger(1);
        msix.trigger(1);
        assert_eq!((pending(&msix), platform.count(MESSAGE)), (2, 0));
        open(&msix, 1);
        assert_eq!((pending(&msix), platform.count(MESSAGE)), (0, 1));
        msix.trigger(1);
        assert_eq!(platform.count(MESSAGE), 2);
        write(&msix, 16 + 12, MASK);
        msix.trigger(1);
        assert_eq!((pending(&msix), platform.count(MESSAGE)), (2, 2));
    }

    #[test]
    fn the_function_mask_holds_back_every_vector() {
        let (platform, msix) = table(2);
        open(&msix, 0);
        msix.set_control(ENABLE | FUNCTION_MASK);
        msix.trigger(0);
        assert_eq!((pending(&msix), platform.count(MESSAGE)), (1, 0));
        msix.set_control(ENABLE);
        assert_eq!((pending(&msix), platform.count(MESSAGE)), (0, 1));
    }

    #[test]
    fn disabled_means_silent() {
        let (platform, msix) = table(1);
        open(&msix, 0);
        msix.trigger(0);
        assert_eq!((pending(&msix), platform.count(MESSAGE)), (0, 0));
        msix.trigger(NO_SUCH);
    }

    const NO_SUCH: u16 = 0xffff;

    #[test]
    fn what_something_else_signals_waits_in_its_eventfd_while_masked() {
        let platform = FakePlatform::new();
        let msix = Msix::of_external(platform.platform().interrupts.vectors(2).unwrap());
        let signal = |vector: usize| msix.with_events(|events| events[vector].write(1).unwrap());
        msix.set_control(ENABLE);
        open(&msix, 1);
        signal(1);
        platform.deliver();
        assert_eq!((pending(&msix), platform.count(MESSAGE)), (0, 1));
        write(&msix, 16 + 12, MASK);
        signal(1);
        platform.deliver();
        assert_eq!((pending(&msix), pending(&msix), platform.count(MESSAGE)), (2, 2, 1));
        write(&msix, 16 + 12, 0);
        platform.deliver();
        assert_eq!((pending(&msix), platform.count(MESSAGE)), (0, 2));
        msix.set_control(0);
        signal(1);
        msix.reset();
        assert_eq!(pending(&msix), 0, "a reset forgets");
    }

    #[test]
    fn a_new_message_takes_effect_at_unmask_and_masking_costs_no_route() {
        let (platform, msix) = table(1);
        msix.set_control(ENABLE);
        open(&msix, 0);
        assert_eq!(platform.routes(), 1);
        for _ in 0..10 {
            write(&msix, 12, MASK);
            write(&msix, 12, 0);
        }
        assert_eq!(platform.routes(), 1);
        write(&msix, 12, MASK);
        write(&msix, 8, 0x66);
        msix.trigger(0);
        write(&msix, 12, 0);
        let new = MsiMessage { data: 0x66, ..MESSAGE };
        assert_eq!((platform.routes(), platform.count(MESSAGE), platform.count(new)), (2, 0, 1));
    }

    #[test]
    fn a_route_the_host_refuses_is_tried_again() {
        let (platform, msix) = table(1);
        msix.set_control(ENABLE);
        platform.refuse(true);
        open(&msix, 0);
        msix.trigger(0);
        assert_eq!(pending(&msix), 1);
        platform.refuse(false);
        write(&msix, 12, 0);
        assert_eq!((pending(&msix), platform.count(MESSAGE)), (0, 1));
    }

    proptest! {
        #[test]
        fn any_access_is_survived_and_reset_masks_all(
            writes in prop::collection::vec((0u64..0x2010, 0usize..9, any::<u64>(), any::<u16>()), 0..100),
        ) {
            let (platform, msix) = table(5);
            for (offset, width, value, control) in writes {
                let _ = msix.write_table(offset, &value.to_le_bytes()[..width]);
                let _ = msix.read_table(offset, &mut value.to_le_bytes()[..width]);
                let _ = msix.read_pending(offset, &mut value.to_le_bytes()[..width]);
                msix.set_control(control);
                msix.trigger(control);
            }
            msix.reset();
            msix.set_control(ENABLE);
            prop_assert_eq!(pending(&msix), 0);
            (0..5).for_each(|vector| msix.trigger(vector));
            prop_assert_eq!(pending(&msix), 0x1f);
            let mut entry = [0; 8];
            msix.read_table(8, &mut entry).unwrap();
            prop_assert_eq!(entry, [0, 0, 0, 0, 1, 0, 0, 0]);
            drop(msix);
            prop_assert_eq!(platform.vectors(), 0);
        }
    }
}
