#![expect(unsafe_code, reason = "an allocator that counts")]
//! What a process holds: heap, file descriptors, threads. A device that a guest makes grow shows here.

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with an account. A test program makes it its global one.
pub struct Counting;

// SAFETY: every call is the system allocator's own, with the arguments given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What the process holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Bytes of heap, if [`Counting`] is the global allocator.
    pub heap: usize,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads of devices.
    pub threads: usize,
}

impl Census {
    /// Now. From here on [`peak`] starts anew.
    pub fn take() -> Self {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let census = Self { heap: 0, descriptors, threads: threads() };
        let heap = NOW.load(Ordering::Relaxed);
        PEAK.store(heap, Ordering::Relaxed);
        Self { heap, ..census }
    }
}

/// Threads that are not on their way out: who joins one is told before the kernel has put it away.
fn threads() -> usize {
    const PF_EXITING: u64 = 4;
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let alive = tasks.filter(|task| {
        let stat = std::fs::read_to_string(task.as_ref().unwrap().path().join("stat")).unwrap_or_default();
        // The name is in parentheses and may hold anything; the flags are the seventh word after it (proc(5)).
        let Some((name, rest)) = stat.rsplit_once(')') else { return false };
        // Tests are started while others run, to wait for their turn.
        name.contains("(virtio-")
            && rest.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() & PF_EXITING == 0
    });
    alive.count()
}

/// The most bytes of heap since the last census.
pub fn peak() -> usize {
    PEAK.load(Ordering::Relaxed)
}
