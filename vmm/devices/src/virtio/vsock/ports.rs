//! The host's ports: who listens, and connections asked for that the device has not seen yet.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::MOST_CONNECTIONS;
use super::os::EventFd;
use super::os::Mutex;
use super::os::UnixStream;

/// Called on the device's thread for each connection the guest opens to a port; must not block.
pub type Accept = Box<dyn Fn(UnixStream) + Send + Sync>;

/// Somebody listens on the port already.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("vsock port {0} is in use")]
pub struct PortInUse(pub u32);

/// The host's side of every port, shared between the device and the code that listens and connects.
pub struct VsockPorts {
    state: Mutex<State>,
    /// Wakes the device's thread.
    wake: EventFd,
}

#[derive(Default)]
struct State {
    listeners: HashMap<u32, Arc<Accept>>,
    asked: VecDeque<(u32, UnixStream)>,
    /// The device was here and is gone.
    over: bool,
}

impl VsockPorts {
    /// No listeners, no connections.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { state: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK)? }))
    }

    /// Takes connections that the guest opens to `port` of the host, from now on.
    pub fn listen(&self, port: u32, accept: Accept) -> Result<(), PortInUse> {
        let mut state = self.state.lock();
        if state.listeners.contains_key(&port) {
            return Err(PortInUse(port));
        }
        state.listeners.insert(port, Arc::new(accept));
        Ok(())
    }

    /// Refuses connections to `port` from now on; those that are open stay.
    pub fn unlisten(&self, port: u32) {
        // Dropped after the lock: it may own anything.
        let _listener = self.state.lock().listeners.remove(&port);
    }

    /// Asks the guest for a connection to its `port`. Returns at once: bytes written are kept until the guest
    /// accepts, and a refusal is seen as end of file or a reset. May be called before the guest runs.
    ///
    /// Errors: no more descriptors, as many connections waiting as there can be, or the device is gone.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (ours, callers) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        {
            let mut state = self.state.lock();
            if state.over {
                return Err(io::Error::new(io::ErrorKind::NotConnected, "the vsock device is gone"));
            }
            if state.asked.len() == MOST_CONNECTIONS {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "too many vsock connections wait"));
            }
            state.asked.push_back((port, ours));
        }
        self.wake.write(1)?;
        Ok(callers)
    }

    /// For the device: it is there.
    pub(super) fn open(&self) {
        self.state.lock().over = false;
    }

    /// For the device: it is gone, and so is every connection it was to open.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.over = true;
        state.asked.clear();
    }

    /// For the device: who listens on `port`.
    pub(super) fn listener(&self, port: u32) -> Option<Arc<Accept>> {
        self.state.lock().listeners.get(&port).cloned()
    }

    /// For the device: the connections asked for since the last call.
    pub(super) fn take_asked(&self) -> VecDeque<(u32, UnixStream)> {
        // Before looking: what is asked for after the look wakes again.
        self.clear_wake();
        std::mem::take(&mut self.state.lock().asked)
    }

    /// For the device: it was woken, and will look.
    pub(super) fn clear_wake(&self) {
        // Nobody may have woken it.
        let _ = self.wake.read();
    }

    pub(super) fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}
