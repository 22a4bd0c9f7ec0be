//! How much of the process's descriptor table one guest may hold: every inode it remembers and every file it
//! has open is a descriptor here. All shares of the process are one guest's, so they hold it together.
//!
//! A Linux guest forgets inodes when it needs their memory; a hostile one never does.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::process::Resource;
use rustix::process::Rlimit;

/// More descriptors than any share needs; the kernel's own default ceiling (`fs.nr_open`).
const DESCRIPTORS_WANTED: u64 = 1 << 20;

/// What shares hold together.
#[derive(Default)]
pub(crate) struct Held {
    inodes: AtomicUsize,
    handles: AtomicUsize,
}

/// What all shares of the process hold.
pub(crate) static HELD: Held = Held { inodes: AtomicUsize::new(0), handles: AtomicUsize::new(0) };

/// The guest's lookup counts (FUSE: an inode lives until as many FORGETs as LOOKUPs) and open handles.
pub(crate) struct Ledger {
    lookups: Mutex<HashMap<u64, u64>>,
    handles: AtomicUsize,
    held: &'static Held,
    max_inodes: usize,
    max_handles: usize,
}

impl Ledger {
    /// Half of the descriptors the process may have go to inodes, an eighth to open files; the rest stays free
    /// for the machine.
    pub(crate) fn new(held: &'static Held, descriptors: usize) -> Ledger {
        Ledger {
            lookups: Mutex::new(HashMap::new()),
            handles: AtomicUsize::new(0),
            held,
            max_inodes: descriptors / 2,
            max_handles: descriptors / 8,
        }
    }

    /// Fails with ENFILE once the guest holds as many inodes as it may. Ask before making a new one.
    pub(crate) fn room_for_inode(&self) -> io::Result<()> {
        room(self.held.inodes.load(Ordering::Relaxed), self.max_inodes)
    }

    /// Fails with ENFILE once the guest has as many files open as it may. Ask before opening one.
    pub(crate) fn room_for_handle(&self) -> io::Result<()> {
        room(self.held.handles.load(Ordering::Relaxed), self.max_handles)
    }

    /// The guest was told of `inode` once more.
    pub(crate) fn looked_up(&self, inode: u64) {
        let mut lookups = self.lookups.lock();
        let count = lookups.entry(inode).or_insert_with(|| {
            self.held.inodes.fetch_add(1, Ordering::Relaxed);
            0
        });
        *count = count.saturating_add(1);
    }

    /// The guest forgot `count` of those times.
    pub(crate) fn forgot(&self, inode: u64, count: u64) {
        let mut lookups = self.lookups.lock();
        if let Some(left) = lookups.get_mut(&inode) {
            *left = left.saturating_sub(count);
            if *left == 0 {
                lookups.remove(&inode);
                self.held.inodes.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// A file was opened.
    pub(crate) fn opened(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
        self.held.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// An open file was closed. Each close follows an open, so the count stays right.
    pub(crate) fn closed(&self) {
        self.handles.fetch_sub(1, Ordering::Relaxed);
        self.held.handles.fetch_sub(1, Ordering::Relaxed);
    }

    /// The guest unmounted: all is forgotten and closed.
    pub(crate) fn clear(&self) {
        let inodes = std::mem::take(&mut *self.lookups.lock()).len();
        self.held.inodes.fetch_sub(inodes, Ordering::Relaxed);
        let handles = self.handles.swap(0, Ordering::Relaxed);
        self.held.handles.fetch_sub(handles, Ordering::Relaxed);
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.clear();
    }
}

fn room(held: usize, most: usize) -> io::Result<()> {
    if held < most { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENFILE)) }
}

/// Raises the process's descriptor limit as far as it goes and returns it. The limit is the process's, not
/// only ours: a share needs one descriptor per inode the guest remembers.
pub(crate) fn raise_descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let above = Rlimit {
        current: Some(DESCRIPTORS_WANTED),
        maximum: limit.maximum.map(|maximum| maximum.max(DESCRIPTORS_WANTED)),
    };
    if rustix::process::setrlimit(Resource::Nofile, above).is_err() {
        // Without CAP_SYS_RESOURCE the ceiling stays where it is.
        let ceiling = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let _ = rustix::process::setrlimit(Resource::Nofile, ceiling);
    }
    let current = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_WANTED);
    usize::try_from(current.min(DESCRIPTORS_WANTED)).expect("at most 2^20")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone() -> &'static Held {
        Box::leak(Box::default())
    }

    #[test]
    fn shares_hold_together_and_a_share_that_goes_holds_nothing() {
        let held = alone();
        let (first, second) = (Ledger::new(held, 8), Ledger::new(held, 8));
        for inode in 0..4 {
            first.looked_up(inode);
        }
        first.opened();
        assert!(second.room_for_inode().is_err() && second.room_for_handle().is_err());
        drop(first);
        assert!(second.room_for_inode().is_ok() && second.room_for_handle().is_ok());
    }

    #[test]
    fn an_inode_is_held_until_every_lookup_is_forgotten() {
        let ledger = Ledger::new(alone(), 4);
        ledger.looked_up(7);
        ledger.looked_up(7);
        ledger.looked_up(8);
        assert_eq!(ledger.room_for_inode().unwrap_err().raw_os_error(), Some(libc::ENFILE));
        ledger.forgot(7, 1);
        assert!(ledger.room_for_inode().is_err());
        ledger.forgot(7, u64::MAX);
        assert!(ledger.room_for_inode().is_ok());
        ledger.forgot(99, 3);
    }

    #[test]
    fn open_files_are_bounded() {
        let ledger = Ledger::new(alone(), 8);
        assert!(ledger.room_for_handle().is_ok());
        ledger.opened();
        assert!(ledger.room_for_handle().is_err());
        ledger.closed();
        assert!(ledger.room_for_handle().is_ok());
    }
}
