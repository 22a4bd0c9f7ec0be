//! How much of the process's descriptor table one guest may hold: every inode it remembers and every file it
//! has open is a descriptor here.
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

/// The guest's lookup counts (FUSE: an inode lives until as many FORGETs as LOOKUPs) and open handles.
pub(crate) struct Ledger {
    lookups: Mutex<HashMap<u64, u64>>,
    handles: AtomicUsize,
    max_inodes: usize,
    max_handles: usize,
}

impl Ledger {
    /// Half of the descriptors the process may have go to inodes, an eighth to open files; the rest stays free
    /// for the machine.
    pub(crate) fn new(descriptors: usize) -> Ledger {
        Ledger {
            lookups: Mutex::new(HashMap::new()),
            handles: AtomicUsize::new(0),
            max_inodes: descriptors / 2,
            max_handles: descriptors / 8,
        }
    }

    /// Fails with ENFILE once the guest holds as many inodes as it may. Ask before making a new one.
    pub(crate) fn room_for_inode(&self) -> io::Result<()> {
        room(self.lookups.lock().len(), self.max_inodes)
    }

    /// Fails with ENFILE once the guest has as many files open as it may. Ask before opening one.
    pub(crate) fn room_for_handle(&self) -> io::Result<()> {
        room(self.handles.load(Ordering::Relaxed), self.max_handles)
    }

    /// The guest was told of `inode` once more.
    pub(crate) fn looked_up(&self, inode: u64) {
        let mut lookups = self.lookups.lock();
        let count = lookups.entry(inode).or_default();
        *count = count.saturating_add(1);
    }

    /// The guest forgot `count` of those times.
    pub(crate) fn forgot(&self, inode: u64, count: u64) {
        let mut lookups = self.lookups.lock();
        if let Some(left) = lookups.get_mut(&inode) {
            *left = left.saturating_sub(count);
            if *left == 0 {
                lookups.remove(&inode);
            }
        }
    }

    /// A file was opened.
    pub(crate) fn opened(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// An open file was closed. Each close follows an open, so the count stays right.
    pub(crate) fn closed(&self) {
        self.handles.fetch_sub(1, Ordering::Relaxed);
    }

    /// The guest unmounted: all is forgotten and closed.
    pub(crate) fn clear(&self) {
        self.lookups.lock().clear();
        self.handles.store(0, Ordering::Relaxed);
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

    #[test]
    fn an_inode_is_held_until_every_lookup_is_forgotten() {
        let ledger = Ledger::new(4);
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
        let ledger = Ledger::new(8);
        assert!(ledger.room_for_handle().is_ok());
        ledger.opened();
        assert!(ledger.room_for_handle().is_err());
        ledger.closed();
        assert!(ledger.room_for_handle().is_ok());
    }
}
