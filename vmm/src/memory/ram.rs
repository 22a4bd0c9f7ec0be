//! The one list of guest RAM that is plugged: what the guest booted with, and every block virtio-mem has
//! plugged since. Who must follow it (an IOMMU's map) subscribes, and is told of each change before the guest
//! is.
//!
//! While anybody subscribes, RAM counts as pinned: a page a device reaches by DMA cannot be given back to the
//! host behind its back, so the balloon and free page reporting give nothing back.
//!
//! Lock order: the list, then whatever a listener locks. A listener never changes the list.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kiai_devices::platform::Discards;
use kiai_devices::platform::RamListener;
use parking_lot::Mutex;

/// The list.
pub(crate) struct Ram(Mutex<List>);

#[derive(Default)]
struct List {
    /// By guest address. A range stays in the pieces in which it came.
    ranges: BTreeMap<u64, Range>,
    listeners: BTreeMap<u64, Arc<dyn RamListener>>,
    next: u64,
}

/// A piece of RAM.
#[derive(Clone, Copy)]
struct Range {
    host: u64,
    length: u64,
}

impl Ram {
    /// A list of `ranges` (guest address, host address, length), which do not overlap.
    pub(crate) fn new(ranges: &[(u64, u64, u64)]) -> Arc<Self> {
        let ranges = ranges.iter().map(|&(guest, host, length)| (guest, Range { host, length })).collect();
        Arc::new(Self(Mutex::new(List { ranges, ..List::default() })))
    }

    /// (guest address, host address, length) of each piece there is now.
    pub(crate) fn pieces(&self) -> Vec<(u64, u64, u64)> {
        self.0.lock().ranges.iter().map(|(&guest, &Range { host, length })| (guest, host, length)).collect()
    }

    /// Tells `listener` of all RAM there is, and from then on of every change until the subscription is
    /// dropped. On an error it has been told that what it knew is gone.
    pub(crate) fn subscribe(self: &Arc<Self>, listener: Arc<dyn RamListener>) -> io::Result<Subscription> {
        let mut list = self.0.lock();
        let mut told = Vec::new();
        for (&guest, &Range { host, length }) in &list.ranges {
            if let Err(error) = listener.added(guest, host, length) {
                take_back(listener.as_ref(), &told);
                return Err(error);
            }
            told.push((guest, length));
        }
        let id = list.next;
        list.next += 1;
        list.listeners.insert(id, listener);
        Ok(Subscription { ram: self.clone(), id })
    }

    /// Adds RAM and tells every listener. If one refuses, those told before hear that it is gone again, and
    /// the list is as it was.
    pub(crate) fn add(&self, guest: u64, host: u64, length: u64) -> io::Result<()> {
        let mut list = self.0.lock();
        let end = guest.checked_add(length).filter(|_| length > 0).ok_or(io::ErrorKind::InvalidInput)?;
        let before = list.ranges.range(..end).next_back();
        if before.is_some_and(|(&start, range)| start + range.length > guest) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let listeners: Vec<_> = list.listeners.values().collect();
        for (told, listener) in listeners.iter().enumerate() {
            if let Err(error) = listener.added(guest, host, length) {
                for before in listeners[..told].iter().rev() {
                    take_back(before.as_ref(), &[(guest, length)]);
                }
                return Err(error);
            }
        }
        list.ranges.insert(guest, Range { host, length });
        Ok(())
    }

    /// Removes RAM, a piece as it was added, and tells every listener. If one refuses, those told before get
    /// it back, and the list is as it was.
    pub(crate) fn remove(&self, guest: u64, length: u64) -> io::Result<()> {
        let mut list = self.0.lock();
        let range = list.ranges.get(&guest).copied().filter(|range| range.length == length);
        let range = range.ok_or(io::ErrorKind::NotFound)?;
        let listeners: Vec<_> = list.listeners.values().collect();
        for (told, listener) in listeners.iter().enumerate() {
            if let Err(error) = listener.removed(guest, length) {
                for before in listeners[..told].iter().rev() {
                    if let Err(error) = before.added(guest, range.host, length) {
                        tracing::error!("guest RAM {guest:#x}+{length:#x} is lost to a device: {error}");
                    }
                }
                return Err(error);
            }
        }
        list.ranges.remove(&guest);
        Ok(())
    }
}

impl Discards for Ram {
    fn discard(&self, discard: &mut dyn FnMut()) -> bool {
        let list = self.0.lock();
        let may = list.listeners.is_empty();
        if may {
            discard();
        }
        may
    }
}

/// Tells a listener that ranges are gone, the last first, when it was told of them a moment ago.
fn take_back(listener: &dyn RamListener, ranges: &[(u64, u64)]) {
    for &(guest, length) in ranges.iter().rev() {
        if let Err(error) = listener.removed(guest, length) {
            tracing::error!("guest RAM {guest:#x}+{length:#x} stays known to a device: {error}");
        }
    }
}

/// A listener's place in the list. Dropping it tells the listener that all RAM is gone, and unpins it.
pub(crate) struct Subscription {
    ram: Arc<Ram>,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut list = self.ram.0.lock();
        if let Some(listener) = list.listeners.remove(&self.id) {
            let ranges: Vec<_> = list.ranges.iter().map(|(&guest, range)| (guest, range.length)).collect();
            take_back(listener.as_ref(), &ranges);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Remembers what it was told, and refuses the guest addresses it is told to refuse.
    #[derive(Default)]
    struct Follower {
        known: Mutex<BTreeMap<u64, (u64, u64)>>,
        refuses: Mutex<Vec<u64>>,
    }

    impl Follower {
        fn refusing(guest: u64) -> Arc<Self> {
            let follower = Self::default();
            follower.refuses.lock().push(guest);
            Arc::new(follower)
        }

        fn known(&self) -> Vec<(u64, u64, u64)> {
            self.known.lock().iter().map(|(&guest, &(host, length))| (guest, host, length)).collect()
        }

        fn check(&self, guest: u64) -> io::Result<()> {
            if self.refuses.lock().contains(&guest) { Err(io::Error::other("no")) } else { Ok(()) }
        }
    }

    impl RamListener for Follower {
        fn added(&self, guest: u64, host: u64, length: u64) -> io::Result<()> {
            self.check(guest)?;
            assert!(self.known.lock().insert(guest, (host, length)).is_none(), "told twice");
            Ok(())
        }

        fn removed(&self, guest: u64, length: u64) -> io::Result<()> {
            self.check(guest)?;
            let (_, known) = self.known.lock().remove(&guest).expect("was told of it");
            assert_eq!(known, length);
            Ok(())
        }
    }

    const BOOT: [(u64, u64, u64); 2] = [(0, 0x7000_0000, 64 * MIB), (4096 * MIB, 0x7400_0000, 32 * MIB)];
    const BLOCK: (u64, u64, u64) = (8192 * MIB, 0x9000_0000, 2 * MIB);

    #[test]
    fn a_listener_knows_all_ram_from_its_subscription_to_its_end() {
        let ram = Ram::new(&BOOT);
        ram.add(BLOCK.0, BLOCK.1, BLOCK.2).unwrap();
        let follower = Arc::new(Follower::default());
        let subscription = ram.subscribe(follower.clone()).unwrap();
        assert_eq!(follower.known(), [BOOT[0], BOOT[1], BLOCK]);
        ram.remove(BLOCK.0, BLOCK.2).unwrap();
        assert_eq!(follower.known(), BOOT);
        ram.add(BLOCK.0, BLOCK.1, BLOCK.2).unwrap();
        assert_eq!(follower.known(), [BOOT[0], BOOT[1], BLOCK]);
        drop(subscription);
        assert_eq!(follower.known(), []);
        ram.remove(BLOCK.0, BLOCK.2).unwrap();
    }

    #[test]
    fn ram_is_pinned_while_anybody_follows_it() {
        let ram = Ram::new(&BOOT);
        assert!(ram.discard(&mut || ()));
        let first = ram.subscribe(Arc::new(Follower::default())).unwrap();
        let second = ram.subscribe(Arc::new(Follower::default())).unwrap();
        drop(first);
        assert!(!ram.discard(&mut || ()));
        assert!(!ram.discard(&mut || panic!("it is pinned")));
        drop(second);
        let mut discarded = false;
        assert!(ram.discard(&mut || discarded = true));
        assert!(discarded);
    }

    #[test]
    fn a_refused_subscription_leaves_nothing_behind() {
        let ram = Ram::new(&BOOT);
        let follower = Follower::refusing(BOOT[1].0);
        assert!(ram.subscribe(follower.clone()).is_err());
        assert_eq!(follower.known(), []);
        assert!(ram.discard(&mut || ()));
    }

    #[test]
    fn a_refused_change_is_undone_everywhere() {
        let ram = Ram::new(&BOOT);
        let willing = Arc::new(Follower::default());
        let unwilling = Follower::refusing(BLOCK.0);
        let _first = ram.subscribe(willing.clone()).unwrap();
        let _second = ram.subscribe(unwilling.clone()).unwrap();
        assert!(ram.add(BLOCK.0, BLOCK.1, BLOCK.2).is_err());
        assert_eq!((willing.known(), unwilling.known()), (BOOT.to_vec(), BOOT.to_vec()));
        assert_eq!(ram.remove(BLOCK.0, BLOCK.2).unwrap_err().kind(), io::ErrorKind::NotFound);

        unwilling.refuses.lock().clear();
        ram.add(BLOCK.0, BLOCK.1, BLOCK.2).unwrap();
        unwilling.refuses.lock().push(BLOCK.0);
        assert!(ram.remove(BLOCK.0, BLOCK.2).is_err());
        assert_eq!(willing.known(), [BOOT[0], BOOT[1], BLOCK]);
        unwilling.refuses.lock().clear();
        ram.remove(BLOCK.0, BLOCK.2).unwrap();
    }

    #[test]
    fn ranges_do_not_overlap_and_go_as_they_came() {
        let ram = Ram::new(&BOOT);
        for (guest, length) in [(0, MIB), (63 * MIB, 2 * MIB), (4095 * MIB, 2 * MIB), (MIB, MIB)] {
            assert!(ram.add(guest, 0, length).is_err(), "{guest:#x}+{length:#x}");
        }
        assert!(ram.add(u64::MAX, 0, 2).is_err());
        assert!(ram.add(8192 * MIB, 0, 0).is_err());
        ram.add(64 * MIB, 0, 2 * MIB).unwrap();
        assert!(ram.remove(64 * MIB, MIB).is_err());
        assert!(ram.remove(65 * MIB, MIB).is_err());
        ram.remove(64 * MIB, 2 * MIB).unwrap();
    }
}
