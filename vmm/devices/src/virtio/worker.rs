//! A device's thread: waits on a fixed set of file descriptors, calls a handler, ends when told.
//!
//! No timer and no polling: a worker with nothing to do is asleep in epoll_wait.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use vmm_sys_util::epoll::ControlOperation;
use vmm_sys_util::epoll::EpollEvent;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::os::Epoll;
use super::os::EventFd;
use super::os::thread;
use super::os::thread::JoinHandle;
use crate::log_limit::LogLimit;

/// Tokens of the worker's own events; handlers use smaller ones.
const KILL: u64 = u64::MAX;
const AGAIN: u64 = u64::MAX - 1;
/// Events taken from the kernel at a time.
const BATCH: usize = 32;

/// What every worker's thread begins with.
static BEGINNING: OnceLock<Beginning> = OnceLock::new();

type Beginning = fn(&str) -> io::Result<()>;

/// Has `act` called with the thread's name on each worker's thread from now on, before it touches anything of
/// the guest's. A worker whose thread fails at that does nothing. Once in a process; later calls are ignored.
pub fn before_each(act: Beginning) {
    BEGINNING.get_or_init(|| act);
}

/// What a device does on its thread.
pub trait Handler: Send + 'static {
    /// Called once on the thread before the first wait: work may be waiting already.
    fn start(&mut self, interest: &Interest) -> ControlFlow<()>;
    /// A file descriptor registered with `token` is ready. `Break` ends the thread (the device is broken and
    /// has said so to the driver).
    fn ready(&mut self, token: u64, events: EventSet, interest: &Interest) -> ControlFlow<()>;
    /// What [`Interest::again`] asked for. Devices that never ask do nothing.
    fn again(&mut self, _interest: &Interest) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// The set of file descriptors a worker waits on.
pub struct Interest {
    epoll: Epoll,
    again: EventFd,
}

impl Interest {
    /// Nothing but the event of [`Interest::again`].
    fn of_nothing() -> io::Result<Self> {
        let interest = Self { epoll: Epoll::new()?, again: EventFd::new(EFD_NONBLOCK)? };
        interest.add(interest.again.as_raw_fd(), AGAIN, EventSet::IN)?;
        Ok(interest)
    }

    /// Has [`Handler::again`] called once everything else that waits, being told to stop above all, has had its
    /// turn. For a handler that has spent its budget.
    pub fn again(&self) {
        // A full counter means that it is asked for already.
        let _ = self.again.write(1);
    }

    /// Adds a descriptor. The caller keeps it open until it is removed.
    pub fn add(&self, fd: RawFd, token: u64, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
    }

    /// Changes what a descriptor is waited for.
    pub fn change(&self, fd: RawFd, token: u64, events: EventSet) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(events, token))
    }

    /// Removes a descriptor; call it before closing one.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }
}

#[cfg(test)]
impl Interest {
    /// A set of its own, for tests that are their own worker.
    pub(crate) fn new() -> io::Result<Self> {
        Self::of_nothing()
    }

    /// What is ready now, by token.
    pub(crate) fn poll(&self) -> io::Result<Vec<(u64, EventSet)>> {
        let mut events = [EpollEvent::default(); BATCH];
        let count = self.epoll.wait(0, &mut events)?;
        Ok(events[..count].iter().map(|e| (e.data(), e.event_set())).collect())
    }
}

/// A running thread and the handler on it. Dropping stops it.
pub struct Worker<H> {
    thread: Option<JoinHandle<H>>,
    kill: EventFd,
}

impl<H: Handler> Worker<H> {
    /// Starts a thread called `name` that waits for input on `descriptors`, which `handler` keeps open.
    pub fn spawn(name: &str, handler: H, descriptors: &[(RawFd, u64)]) -> io::Result<Self> {
        let kill = EventFd::new(EFD_NONBLOCK)?;
        let interest = Interest::of_nothing()?;
        interest.add(kill.as_raw_fd(), KILL, EventSet::IN)?;
        for &(fd, token) in descriptors {
            interest.add(fd, token, EventSet::IN)?;
        }
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || run(handler, &interest))?;
        Ok(Self { thread: Some(thread), kill })
    }

    /// Ends the thread and hands back what was on it; `None` if it panicked. Returns once it has ended.
    pub fn stop(mut self) -> Option<H> {
        self.join()
    }

    fn join(&mut self) -> Option<H> {
        let thread = self.thread.take()?;
        // The counter of an eventfd written once cannot overflow.
        let _ = self.kill.write(1);
        thread.join().inspect_err(|_| tracing::error!("a device thread panicked")).ok()
    }
}

impl<H> Drop for Worker<H> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.kill.write(1);
            let _ = thread.join();
        }
    }
}

fn run<H: Handler>(mut handler: H, interest: &Interest) -> H {
    let thread = thread::current();
    let name = thread.name().unwrap_or_default();
    if let Err(e) = BEGINNING.get().map_or(Ok(()), |act| act(name)) {
        // Each time a driver starts the device.
        static REPORTS: LogLimit = LogLimit::new();
        if REPORTS.allows() {
            tracing::error!("thread {name} cannot begin: {e}");
        }
        return handler;
    }
    if handler.start(interest).is_break() {
        return handler;
    }
    let mut events = [EpollEvent::default(); BATCH];
    loop {
        let count = match interest.epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                tracing::error!("epoll_wait: {e}");
                return handler;
            }
        };
        // In the order in which they came: what the driver notified of before the worker was told to stop, the
        // last words of a guest that powers off, is still taken.
        for event in &events[..count] {
            let flow = match event.data() {
                KILL => ControlFlow::Break(()),
                AGAIN => {
                    // Before the work: what is asked for during it is asked for anew.
                    let _ = interest.again.read();
                    handler.again(interest)
                }
                token => handler.ready(token, event.event_set(), interest),
            };
            if flow.is_break() {
                return handler;
            }
        }
    }
}
