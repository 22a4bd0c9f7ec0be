//! A device's work while it is active: handed to its thread, and taken back.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::RawFd;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

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

/// A handler and what it takes to begin. All that the device has put there comes back: the thread is not to be the last
/// to hold anything of it.
struct Job<H> {
    name: &'static str,
    /// `None` after a panic, and when it went back.
    handler: Option<H>,
    /// The handler has ended its work: it does not go on after a pause.
    ended: bool,
    begins_with: Vec<(RawFd, u32)>,
    broken: Broken,
}

/// A handler's place on a thread. Dropping it takes the handler off, as far as the thread does not hang.
pub struct Work<H: Handler>(State<H>);

enum State<H> {
    Idle,
    Begun(Begun<H>),
    Paused(Paused<H>),
}

/// A handler off the thread that it is to go back to.
struct Paused<H> {
    thread: Arc<IoThread>,
    job: Job<H>,
}

/// The handler is on the thread, on its way there, or on its way back.
struct Begun<H> {
    thread: Arc<IoThread>,
    /// Signalled for the handler to come back. An event like the driver's notifications, so that it is heard
    /// after those that came before; what is sent to the thread is not.
    end: Arc<EventFd>,
    /// Whether it goes on later. Said before `end` is signalled.
    pausing: Arc<AtomicBool>,
    returned: mpsc::Receiver<Job<H>>,
}

/// Work of any kind, for whoever pauses a device and lets it go on.
pub trait Pausable {
    /// Takes the handler off its thread, after [`Handler::pause`]. Nothing happens to work that is idle, paused or
    /// broken.
    fn pause(&mut self) -> Result<(), Hung>;
    /// Gives the handler back to its thread, where it starts. Nothing happens to work that is not paused.
    fn resume(&mut self) -> Result<(), Gone>;
}

impl<H: Handler> Default for Work<H> {
    fn default() -> Self {
        Self(State::Idle)
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
        let begins_with = descriptors.to_owned();
        let job = Job { name, handler: Some(handler), ended: false, begins_with, broken: Box::new(broken) };
        match self.0 {
            State::Idle => self.hand_over(thread.clone(), job),
            State::Begun(_) | State::Paused(_) => Err(Gone(io::ErrorKind::AlreadyExists.into())),
        }
    }

    fn hand_over(&mut self, thread: Arc<IoThread>, job: Job<H>) -> Result<(), Gone> {
        let watched = Watched::new().map_err(Gone)?;
        let (end, place) = (watched.end.clone(), Place { endpoint: thread.endpoint(), id: Arc::default() });
        let (back, returned) = mpsc::channel();
        let (id, pausing) = (place.id.clone(), Arc::<AtomicBool>::default());
        let served = OnThread { job, stopped: false, pausing: pausing.clone(), watched, back, place };
        let told = thread.tell(move |handlers| {
            id.get_or_init(|| handlers.add_subscriber(Box::new(served)));
        });
        if !told {
            return Err(Gone(io::ErrorKind::BrokenPipe.into()));
        }
        self.0 = State::Begun(Begun { thread, end, pausing, returned });
        Ok(())
    }

    /// Takes the handler back, after [`Handler::stop`]. `None` if there was none, or it panicked. If its thread
    /// hangs, a later call may find that it has come back.
    pub fn end(&mut self) -> Result<Option<H>, Hung> {
        Ok(self.take(false)?.and_then(|taken| taken.job.handler))
    }

    /// The handler, while it is paused and has not panicked.
    pub fn paused(&self) -> Option<&H> {
        match &self.0 {
            State::Paused(paused) => paused.job.handler.as_ref(),
            State::Idle | State::Begun(_) => None,
        }
    }

    /// Takes everything back. The work is idle then, unless the thread hangs.
    fn take(&mut self, pausing: bool) -> Result<Option<Paused<H>>, Hung> {
        if let State::Begun(begun) = &self.0 {
            begun.pausing.store(pausing, Ordering::SeqCst);
            // A full counter means that it was told.
            let _ = begun.end.write(1);
            let job = begun.thread.answer(&begun.returned)?;
            let thread = begun.thread.clone();
            self.0 = State::Idle;
            return Ok(job.map(|job| Paused { thread, job }));
        }
        match std::mem::replace(&mut self.0, State::Idle) {
            State::Paused(mut paused) => {
                if let Some(handler) = paused.job.handler.as_mut().filter(|_| !pausing) {
                    handler.stop();
                }
                Ok(Some(paused))
            }
            State::Idle | State::Begun(_) => Ok(None),
        }
    }
}

impl<H: Handler> Pausable for Work<H> {
    fn pause(&mut self) -> Result<(), Hung> {
        if let Some(paused) = self.take(true)? {
            self.0 = State::Paused(paused);
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Gone> {
        match std::mem::replace(&mut self.0, State::Idle) {
            // What broke stays so until it is reset.
            State::Paused(Paused { thread, job }) if job.handler.is_some() && !job.ended => {
                self.hand_over(thread, job)
            }
            State::Paused(_) => Ok(()),
            state => {
                self.0 = state;
                Ok(())
            }
        }
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
    job: Job<H>,
    /// It has had its last call.
    stopped: bool,
    pausing: Arc<AtomicBool>,
    watched: Watched,
    back: mpsc::Sender<Job<H>>,
    place: Place,
}

impl<H: Handler> OnThread<H> {
    /// Lets the handler do something. If that is its last, only its end is waited for.
    fn act(
        &mut self,
        ops: &mut EventOps<'_>,
        act: impl FnOnce(&mut H, &mut Interest<'_>) -> ControlFlow<()>,
    ) {
        let Some(handler) = self.job.handler.as_mut().filter(|_| !self.stopped) else { return };
        let mut interest = Interest::new(ops, &mut self.watched);
        match catch_unwind(AssertUnwindSafe(|| act(handler, &mut interest))) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => {
                interest.remove_all();
                self.job.ended = true;
                self.last_call(Handler::stop);
            }
            Err(_) => {
                interest.remove_all();
                self.give_up(&"it panicked");
            }
        }
    }

    fn last_call(&mut self, call: impl FnOnce(&mut H)) {
        let stopped = std::mem::replace(&mut self.stopped, true);
        if let Some(handler) = self.job.handler.as_mut().filter(|_| !stopped)
            && catch_unwind(AssertUnwindSafe(|| call(handler))).is_err()
        {
            self.give_up(&"it panicked when it was stopped");
        }
    }

    /// The device is broken until it is reset.
    fn give_up(&mut self, why: &dyn std::fmt::Display) {
        static REPORTS: LogLimit = LogLimit::new();
        if REPORTS.allows() {
            tracing::error!("{} needs a reset: {why}", self.job.name);
        }
        let handler = self.job.handler.take();
        // What it holds may be what it panicked over.
        if catch_unwind(AssertUnwindSafe(|| drop(handler))).is_err() {
            tracing::error!("{}: it panicked as it went", self.job.name);
        }
        (self.job.broken)();
    }

    /// The handler goes back, if there still is one, and its place with it.
    fn end(&mut self) {
        self.last_call(if self.pausing.load(Ordering::SeqCst) { Handler::pause } else { Handler::stop });
        let job = Job {
            name: self.job.name,
            handler: self.job.handler.take(),
            ended: self.job.ended,
            begins_with: std::mem::take(&mut self.job.begins_with),
            broken: std::mem::replace(&mut self.job.broken, Box::new(|| ())),
        };
        // Whoever asked may have gone.
        let _ = self.back.send(job);
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
        match interest.add_all(&self.job.begins_with) {
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
        if self.job.handler.is_some() {
            (self.job.broken)();
        }
    }
}
