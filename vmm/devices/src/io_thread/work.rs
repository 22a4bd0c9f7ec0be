//! A device's work while it is active: handed to its thread, and taken back.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::RawFd;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::OnceLock;

use event_manager::EventOps;
use event_manager::Events;
use event_manager::MutEventSubscriber;
use event_manager::SubscriberId;

use super::handler::AGAIN;
use super::handler::END;
use super::handler::Handler;
use super::handler::Interest;
use super::handler::Watched;
use super::os::EventFd;
use super::os::mpsc;
use super::thread::Endpoint;
use super::thread::Hung;
use super::thread::IoThread;
use super::thread::ServedHandler;
use crate::log_limit::LogLimit;

/// Work cannot begin: the thread has ended, or the host has no more descriptors.
#[derive(Debug, thiserror::Error)]
#[error("hand it to its thread")]
pub struct Gone(#[source] io::Error);

/// Called on the thread when the handler is no more, of which the driver has to be told.
type Broken = Box<dyn Fn() + Send>;

/// What comes back: all that the device has put there. The thread is not to be the last to hold anything of it.
type Returned<H> = (Option<H>, Broken);

/// A handler's place on a thread. Dropping it takes the handler off, as far as the thread does not hang.
pub struct Work<H: Handler>(Option<Begun<H>>);

/// The handler is on the thread, on its way there, or on its way back.
struct Begun<H> {
    thread: Arc<IoThread>,
    /// Signalled for the handler to come back. An event like the driver's notifications, so that it is heard
    /// after those that came before; what is sent to the thread is not.
    end: Arc<EventFd>,
    returned: mpsc::Receiver<Returned<H>>,
}

impl<H: Handler> Default for Work<H> {
    fn default() -> Self {
        Self(None)
    }
}

impl<H: Handler> Work<H> {
    /// Hands `handler` to `thread`, where it waits for input on `descriptors`, which it keeps open. Returns at once.
    /// `broken` is called, on the thread, if the handler panics or the thread cannot serve it. `name` is what the log
    /// calls the device.
    pub fn begin(
        &mut self,
        (thread, name): (&Arc<IoThread>, &'static str),
        handler: H,
        descriptors: &[(RawFd, u32)],
        broken: impl Fn() + Send + 'static,
    ) -> Result<(), Gone> {
        if self.0.is_some() {
            return Err(Gone(io::ErrorKind::AlreadyExists.into()));
        }
        let watched = Watched::new().map_err(Gone)?;
        let (end, place) = (watched.end.clone(), Place { endpoint: thread.endpoint(), id: Arc::default() });
        let (back, returned) = mpsc::channel();
        let id = place.id.clone();
        let served = OnThread {
            name,
            handler: Some(handler),
            stopped: false,
            begins_with: descriptors.to_owned(),
            watched,
            broken: Box::new(broken),
            back,
            place,
        };
        let told = thread.tell(move |handlers| {
            id.get_or_init(|| handlers.add_subscriber(Box::new(served)));
        });
        if !told {
            return Err(Gone(io::ErrorKind::BrokenPipe.into()));
        }
        self.0 = Some(Begun { thread: thread.clone(), end, returned });
        Ok(())
    }

    /// Takes the handler back, after [`Handler::stop`]. `None` if there was none, or it panicked. If its thread
    /// hangs, a later call may find that it has come back.
    pub fn end(&mut self) -> Result<Option<H>, Hung> {
        let Some(Begun { thread, end, returned }) = &self.0 else { return Ok(None) };
        // A full counter means that it was told.
        let _ = end.write(1);
        let returned = thread.answer(returned)?;
        self.0 = None;
        Ok(returned.and_then(|(handler, _)| handler))
    }
}

impl<H: Handler> Drop for Work<H> {
    fn drop(&mut self) {
        // That it hangs has been said.
        let _ = self.end();
    }
}

/// Where a handler is among those of its thread.
struct Place {
    endpoint: Endpoint,
    id: Arc<OnceLock<SubscriberId>>,
}

/// A handler as its thread has it.
struct OnThread<H> {
    name: &'static str,
    /// `None` after a panic, and when it went back.
    handler: Option<H>,
    /// It has had its last call.
    stopped: bool,
    begins_with: Vec<(RawFd, u32)>,
    watched: Watched,
    broken: Broken,
    back: mpsc::Sender<Returned<H>>,
    place: Place,
}

impl<H: Handler> OnThread<H> {
    /// Lets the handler do something. If that is its last, only its end is waited for.
    fn act(
        &mut self,
        ops: &mut EventOps<'_>,
        act: impl FnOnce(&mut H, &mut Interest<'_>) -> ControlFlow<()>,
    ) {
        let Some(handler) = self.handler.as_mut().filter(|_| !self.stopped) else { return };
        let mut interest = Interest::new(ops, &mut self.watched);
        match catch_unwind(AssertUnwindSafe(|| act(handler, &mut interest))) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => {
                interest.remove_all();
                self.stop();
            }
            Err(_) => {
                interest.remove_all();
                self.give_up(&"it panicked");
            }
        }
    }

    fn stop(&mut self) {
        let stopped = std::mem::replace(&mut self.stopped, true);
        if let Some(handler) = self.handler.as_mut().filter(|_| !stopped)
            && catch_unwind(AssertUnwindSafe(|| handler.stop())).is_err()
        {
            self.give_up(&"it panicked when it was stopped");
        }
    }

    /// The device is broken until it is reset.
    fn give_up(&mut self, why: &dyn std::fmt::Display) {
        static REPORTS: LogLimit = LogLimit::new();
        if REPORTS.allows() {
            tracing::error!("{} needs a reset: {why}", self.name);
        }
        let handler = self.handler.take();
        // What it holds may be what it panicked over.
        if catch_unwind(AssertUnwindSafe(|| drop(handler))).is_err() {
            tracing::error!("{}: it panicked as it went", self.name);
        }
        (self.broken)();
    }

    /// The handler goes back, if there still is one, and its place with it.
    fn end(&mut self) {
        self.stop();
        let broken = std::mem::replace(&mut self.broken, Box::new(|| ()));
        // Whoever asked may have gone.
        let _ = self.back.send((self.handler.take(), broken));
        let id = self.place.id.clone();
        // The place cannot be given up from within.
        let _ = self.place.endpoint.fire(move |handlers| {
            let _gone = id.get().map(|id| handlers.remove_subscriber(*id));
        });
    }
}

impl<H: Handler> MutEventSubscriber for OnThread<H> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut interest = Interest::new(ops, &mut self.watched);
        match interest.add_all(&self.begins_with) {
            Ok(()) => self.act(ops, Handler::start),
            Err(e) => {
                interest.remove_all();
                self.give_up(&e);
                self.end();
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            END => {
                let _ = self.watched.end.read();
                Interest::new(ops, &mut self.watched).remove_all();
                self.end();
            }
            AGAIN => {
                self.watched.clear_again();
                self.act(ops, Handler::again);
            }
            token => self.act(ops, |handler, interest| handler.ready(token, events.event_set(), interest)),
        }
    }
}

impl<H: Handler> ServedHandler for OnThread<H> {}

impl<H> Drop for OnThread<H> {
    /// The thread ends with the handler on it.
    fn drop(&mut self) {
        if self.handler.is_some() {
            (self.broken)();
        }
    }
}
