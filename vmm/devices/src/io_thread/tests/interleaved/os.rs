//! Threads and locks of shuttle, and the kernel's own events and sockets with a point before each call at which
//! another thread may go on. Nothing here blocks in the kernel: who would, lets the others run and looks again.

use std::io;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::time::Duration;

use event_manager::EventManager;
use event_manager::MutEventSubscriber;
use kiai_interleave::shuttle::sync::atomic::AtomicBool;
use kiai_interleave::shuttle::sync::atomic::Ordering;

pub(crate) use kiai_interleave::parking_lot::Mutex;
pub(crate) use kiai_interleave::shuttle::sync::mpsc;
pub(crate) use kiai_interleave::shuttle::thread;

/// Another thread may go on here.
pub(crate) fn point() {
    AtomicBool::new(false).load(Ordering::SeqCst);
}

pub(crate) struct EventFd(vmm_sys_util::eventfd::EventFd);

impl EventFd {
    pub(crate) fn new(flags: i32) -> io::Result<Self> {
        Ok(Self(vmm_sys_util::eventfd::EventFd::new(flags | vmm_sys_util::eventfd::EFD_NONBLOCK)?))
    }

    pub(crate) fn write(&self, value: u64) -> io::Result<()> {
        point();
        self.0.write(value)
    }

    pub(crate) fn read(&self) -> io::Result<u64> {
        point();
        self.0.read()
    }

    /// Waits until it can be read.
    pub(crate) fn wait(&self) -> u64 {
        wait_for(|| self.0.read())
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Tries again, the others running meanwhile, as long as it would block.
pub(crate) fn wait_for<T>(mut call: impl FnMut() -> io::Result<T>) -> T {
    loop {
        point();
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
            done => return done.unwrap(),
        }
    }
}

/// As the kernel would, but the others run meanwhile.
pub(crate) fn run<S: MutEventSubscriber>(manager: &mut EventManager<S>) -> event_manager::Result<usize> {
    loop {
        point();
        match manager.run_with_timeout(0)? {
            0 => thread::yield_now(),
            count => return Ok(count),
        }
    }
}

/// Nobody's patience ends here: who hangs is found by the check.
pub(crate) fn receive<T>(answer: &mpsc::Receiver<T>, _: Duration) -> Result<T, mpsc::RecvTimeoutError> {
    answer.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
}

/// One end of a pair whose buffers take a few small messages.
pub(crate) struct UnixStream(std::os::unix::net::UnixStream);

impl UnixStream {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = std::os::unix::net::UnixStream::pair()?;
        for end in [&one, &other] {
            end.set_nonblocking(true)?;
            // The kernel makes it the least it allows.
            rustix::net::sockopt::set_socket_send_buffer_size(end, 1)?;
        }
        Ok((Self(one), Self(other)))
    }

    /// They are all so.
    pub(crate) fn set_nonblocking(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        point();
        self.0.shutdown(how)
    }
}

impl Read for UnixStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        point();
        self.0.read(buffer)
    }
}

/// Every call on it begins with this.
impl AsFd for UnixStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        point();
        self.0.as_fd()
    }
}

impl AsRawFd for UnixStream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
