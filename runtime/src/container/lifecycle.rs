//! The states of one process, and whose turn it is to change them. Knows neither guest nor client: what is asked of
//! the one comes as a future, and what is told to the other as a function.
//!
//! ```text
//!   Created ──start──► Running ◄──pause/resume──► Paused
//!      └───────────────────┴──── exits ───────────► Stopped(Exit) ──► removed
//! ```
//! A turn is: look at the state, ask the guest, change the state, tell of it. The next begins when it is over, so
//! the state follows the guest's in the order in which the guest changed it, and is told in that order.

use super::Exit;
use super::ProcessState;
use super::os::AsyncMutex;
use super::os::watch;

/// How what was killed with its container ended, or was removed without a start.
const KILLED: u32 = 137;

/// Where a process is in its life.
pub(super) struct Lifecycle {
    state: watch::Sender<ProcessState>,
    /// Held for a turn. Whether the process was removed.
    removed: AsyncMutex<bool>,
}

/// Why a state was not changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unchanged<E> {
    /// The process is in another state.
    State(ProcessState),
    /// The guest refused, or did not answer.
    Guest(E),
}

/// Why a process was not removed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotRemoved {
    /// It runs or is paused.
    State(ProcessState),
    /// It was removed before.
    Gone,
}

impl Lifecycle {
    /// Of a process that was created.
    pub(super) fn new() -> Self {
        Self { state: watch::channel(ProcessState::Created).0, removed: AsyncMutex::new(false) }
    }

    pub(super) fn state(&self) -> ProcessState {
        *self.state.borrow()
    }

    /// Moves from one state to another once the guest has done what `ask` asks for, and tells it.
    pub(super) async fn change<E>(
        &self,
        (from, to): (ProcessState, ProcessState),
        ask: impl Future<Output = Result<(), E>>,
        tell: impl FnOnce(),
    ) -> Result<(), Unchanged<E>> {
        let _turn = self.removed.lock().await;
        let state = self.state();
        if state != from {
            return Err(Unchanged::State(state));
        }
        ask.await.map_err(Unchanged::Guest)?;
        self.state.send_replace(to);
        tell();
        Ok(())
    }

    /// The process has ended: told, unless its removal was told before.
    pub(super) async fn end(&self, exit: Exit, tell: impl FnOnce()) {
        let removed = self.removed.lock().await;
        if !*removed {
            tell();
        }
        self.stop(exit);
    }

    /// Removes a process that does not run, once: `work` does it, in the state it is given, and `tell` tells it.
    /// Returns how the process had ended.
    pub(super) async fn remove<W: Future<Output = ()>>(
        &self,
        work: impl FnOnce(ProcessState) -> W,
        tell: impl FnOnce(Exit),
    ) -> Result<Exit, NotRemoved> {
        let mut removed = self.removed.lock().await;
        if *removed {
            return Err(NotRemoved::Gone);
        }
        let state = self.state();
        let exit = match state {
            ProcessState::Running | ProcessState::Paused => return Err(NotRemoved::State(state)),
            ProcessState::Stopped(exit) => exit,
            ProcessState::Created => Exit::now(KILLED),
        };
        work(state).await;
        tell(exit);
        *removed = true;
        self.stop(exit);
        Ok(exit)
    }

    /// Returns once the end is told of a process whose container is gone. A start that is under way is waited for;
    /// what was not started never will be.
    pub(super) async fn over(&self) {
        {
            let _turn = self.removed.lock().await;
            if self.state() == ProcessState::Created {
                self.stop(Exit::now(KILLED));
            }
        }
        self.wait().await;
    }

    /// The first exit counts.
    fn stop(&self, exit: Exit) {
        self.state.send_if_modified(|state| {
            let first = !matches!(state, ProcessState::Stopped(_));
            if first {
                *state = ProcessState::Stopped(exit);
            }
            first
        });
    }

    /// Waits for the end, whenever it began to run.
    pub(super) async fn wait(&self) -> Exit {
        let mut state = self.state.subscribe();
        loop {
            if let ProcessState::Stopped(exit) = *state.borrow_and_update() {
                return exit;
            }
            // `self` holds the sender, so the channel outlives this wait.
            let _ = state.changed().await;
        }
    }
}
