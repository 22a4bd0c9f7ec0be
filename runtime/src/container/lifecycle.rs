//! The states of one process, and the turns in which they change. Knows neither guest nor client: the request to the
//! guest comes as a future, and the report to the client as a function.
//!
//! ```text
//!   Created ──start──► Running ◄──pause/resume──► Paused
//!      └───────────────────┴──── exits ───────────► Stopped(Exit) ──► removed
//! ```
//! A turn is: look at the state, ask the guest, change the state, report the change. The next turn begins when it is
//! over, so the state follows the guest's in the order in which the guest changed it, and is reported in that order.

use super::Exit;
use super::ProcessState;
use super::os::AsyncMutex;
use super::os::watch;

/// Exit status of a process that was killed with its container.
pub(super) const KILLED: u32 = 137;

/// The state of one process.
pub(super) struct Lifecycle {
    state: watch::Sender<ProcessState>,
    /// Locked for a turn. True once the process was removed.
    removed: AsyncMutex<bool>,
    /// Exit status if the process is removed and was never started.
    never_started: u32,
}

/// Why a state did not change.
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
    /// The process runs or is paused.
    State(ProcessState),
    /// The process was removed before.
    Gone,
}

impl Lifecycle {
    /// The lifecycle of a process that was created. `never_started` is its exit status if it is removed before it was
    /// started.
    pub(super) fn new(never_started: u32) -> Self {
        let state = watch::channel(ProcessState::Created).0;
        Self { state, removed: AsyncMutex::new(false), never_started }
    }

    pub(super) fn state(&self) -> ProcessState {
        *self.state.borrow()
    }

    /// Changes the state from `from` to `to` once the guest has done what `ask` asks for, and reports it.
    pub(super) async fn change<E>(
        &self,
        (from, to): (ProcessState, ProcessState),
        ask: impl Future<Output = Result<(), E>>,
        report: impl FnOnce(),
    ) -> Result<(), Unchanged<E>> {
        let _turn = self.removed.lock().await;
        let state = self.state();
        if state != from {
            return Err(Unchanged::State(state));
        }
        ask.await.map_err(Unchanged::Guest)?;
        self.state.send_replace(to);
        report();
        Ok(())
    }

    /// Records that the process has ended, and reports it unless its removal was reported before.
    pub(super) async fn end(&self, exit: Exit, report: impl FnOnce()) {
        let removed = self.removed.lock().await;
        if !*removed {
            report();
        }
        self.stop(exit);
    }

    /// Removes a process that does not run, once: `work` removes it, given its state, and `report` reports it. Returns
    /// how the process had ended.
    pub(super) async fn remove<W: Future<Output = ()>>(
        &self,
        work: impl FnOnce(ProcessState) -> W,
        report: impl FnOnce(Exit),
    ) -> Result<Exit, NotRemoved> {
        let mut removed = self.removed.lock().await;
        if *removed {
            return Err(NotRemoved::Gone);
        }
        let state = self.state();
        let exit = match state {
            ProcessState::Running | ProcessState::Paused => return Err(NotRemoved::State(state)),
            ProcessState::Stopped(exit) => exit,
            ProcessState::Created => Exit::now(self.never_started),
        };
        work(state).await;
        report(exit);
        *removed = true;
        self.stop(exit);
        Ok(exit)
    }

    /// For a process whose container was removed: returns once its end is reported. Waits for a start that is under
    /// way; a process that was not started becomes stopped.
    pub(super) async fn over(&self) {
        {
            let _turn = self.removed.lock().await;
            if self.state() == ProcessState::Created {
                self.stop(Exit::now(KILLED));
            }
        }
        self.wait().await;
    }

    /// Makes the state stopped; the first exit counts.
    fn stop(&self, exit: Exit) {
        self.state.send_if_modified(|state| {
            let first = !matches!(state, ProcessState::Stopped(_));
            if first {
                *state = ProcessState::Stopped(exit);
            }
            first
        });
    }

    /// Waits for the end of the process, even if it was not started yet.
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
