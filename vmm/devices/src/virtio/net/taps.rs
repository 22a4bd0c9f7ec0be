//! The queues of one tap interface, and which of them are in use.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::eventfd::EventFd;

use super::NetError;
use super::tap::Tap;

/// All queues. A queue that is not attached gets no frames from the interface and takes none.
pub(super) struct Taps {
    queues: Vec<(Tap, EventFd)>,
    /// Whether each is attached. Locked while that changes.
    attached: Mutex<Vec<bool>>,
    /// How many pairs the driver uses.
    pairs: AtomicUsize,
}

impl Taps {
    pub(super) fn new(descriptors: Vec<OwnedFd>) -> Result<Self, NetError> {
        let attached = Mutex::new(vec![true; descriptors.len()]);
        let queue = |(index, fd)| {
            let tap = Tap::new(fd).map_err(|source| NetError::Tap { index, source })?;
            Ok((tap, EventFd::new(EFD_NONBLOCK).map_err(NetError::Event)?))
        };
        let queues = descriptors.into_iter().enumerate().map(queue).collect::<Result<_, NetError>>()?;
        let taps = Self { queues, attached, pairs: AtomicUsize::new(1) };
        taps.use_pairs(1).map_err(|source| NetError::Tap { index: 0, source })?;
        Ok(taps)
    }

    pub(super) fn count(&self) -> usize {
        self.queues.len()
    }

    /// Queue `index`.
    pub(super) fn tap(&self, index: usize) -> &Tap {
        &self.queues[index].0
    }

    /// Signalled when queue `index` has become attached.
    pub(super) fn attached(&self, index: usize) -> &EventFd {
        &self.queues[index].1
    }

    pub(super) fn configure(&self, offloads: libc::c_uint) -> io::Result<()> {
        self.tap(0).configure(offloads)
    }

    /// How many pairs the driver uses, or has used before a pause.
    pub(super) fn pairs(&self) -> usize {
        self.pairs.load(Ordering::SeqCst)
    }

    /// To be followed by [`Taps::use_pairs`].
    pub(super) fn set_pairs(&self, pairs: usize) {
        self.pairs.store(pairs, Ordering::SeqCst);
    }

    /// Attaches the first `pairs` queues and detaches the others. What failed before stays as it is.
    pub(super) fn use_pairs(&self, pairs: usize) -> io::Result<()> {
        let mut attached = self.attached.lock();
        for (index, (tap, changed)) in self.queues.iter().enumerate() {
            let wanted = index < pairs;
            if attached[index] != wanted {
                tap.attach(wanted)?;
                attached[index] = wanted;
                if wanted {
                    changed.write(1)?;
                }
            }
        }
        Ok(())
    }
}
