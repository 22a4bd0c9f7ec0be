//! A thread that serves devices until the last of them has let go of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use event_manager::EventManager;
use event_manager::MutEventSubscriber;
use event_manager::RemoteEndpoint;
use event_manager::SubscriberOps;

use super::PATIENCE;
use super::os;
use super::os::Mutex;
use super::os::mpsc;
use super::os::thread;
use super::os::thread::JoinHandle;

/// Events taken from the kernel at a time.
const BATCH: usize = 32;

/// A handler among others, whatever its type.
pub(super) type Served = Box<dyn ServedHandler>;

/// What it has to be.
pub(super) trait ServedHandler: MutEventSubscriber + Send {}

/// All handlers of a thread, to whoever is on it.
pub(super) type Handlers<'a> = &'a mut dyn SubscriberOps<Subscriber = Served>;

/// The way to a thread.
pub(super) type Endpoint = RemoteEndpoint<Served>;

/// Its thread does not come back from what it does for a device, which may still reach guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its thread hangs in what it does for the guest")]
pub struct Hung;

/// A thread for one device or several. Dropping ends it; one that hangs is left behind.
pub struct IoThread {
    name: String,
    endpoint: Endpoint,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread has let go of everything.
    ended: Mutex<mpsc::Receiver<()>>,
    stop: Arc<AtomicBool>,
    /// Somebody has waited in vain: nobody waits again until it has come back.
    hangs: AtomicBool,
}

impl IoThread {
    /// Starts a thread called `name` whose first act is `begin`. What that returns is kept until the thread has
    /// ended: what its handlers may reach, should they hang when everybody else has gone. If it fails the thread
    /// serves nobody, and whoever begins work on it is told.
    pub fn start<Kept: 'static>(
        name: &str,
        begin: impl FnOnce() -> io::Result<Kept> + Send + 'static,
    ) -> io::Result<Self> {
        let manager = EventManager::<Served>::new_with_capacity(BATCH).map_err(io::Error::other)?;
        let endpoint = manager.remote_endpoint();
        let (until, ended) = mpsc::channel();
        let stop = Arc::<AtomicBool>::default();
        let told = stop.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _until: mpsc::Sender<()> = until;
            match begin() {
                Ok(_kept) => serve(manager, &told),
                Err(e) => tracing::error!("a device's thread cannot begin: {e}"),
            }
        })?;
        let (ended, hangs) = (Mutex::new(ended), AtomicBool::new(false));
        Ok(Self { name: name.to_owned(), endpoint, thread: Some(thread), ended, stop, hangs })
    }

    /// Has `act` done on the thread, after what it was told before. False if the thread has ended.
    pub(super) fn tell(&self, act: impl FnOnce(Handlers<'_>) + Send + 'static) -> bool {
        self.endpoint.fire(act).is_ok()
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// Waits for what the thread answers; `None` if it ended without.
    pub(super) fn answer<T>(&self, answer: &mpsc::Receiver<T>) -> Result<Option<T>, Hung> {
        let hung = self.hangs.load(Ordering::Relaxed);
        match os::receive(answer, if hung { Duration::ZERO } else { PATIENCE }) {
            Ok(answer) => {
                self.hangs.store(false, Ordering::Relaxed);
                Ok(Some(answer))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if !self.hangs.swap(true, Ordering::Relaxed) {
                    tracing::error!("thread {} hangs in what it does for the guest", self.name);
                }
                Err(Hung)
            }
        }
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let stop = self.stop.clone();
        self.tell(move |_| stop.store(true, Ordering::Relaxed));
        if self.answer(&self.ended.lock()).is_err() {
            tracing::error!("thread {} is left behind", self.name);
        } else if thread.join().is_err() {
            tracing::error!("thread {} panicked", self.name);
        }
    }
}

fn serve(mut manager: EventManager<Served>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Err(e) = os::run(&mut manager) {
            tracing::error!("a device's thread ends: {e}");
            return;
        }
    }
}
