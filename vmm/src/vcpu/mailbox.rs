//! Where a vCPU is told what to do. A command is looked at at once, wherever the vCPU is: asleep it is woken, in
//! the guest it is kicked out.

use std::collections::VecDeque;

use super::sync::Condvar;
use super::sync::Mutex;
use super::sync::mpsc;

/// What a vCPU can be told; `R` are the questions it answers wherever it is.
pub(super) enum Command<R> {
    /// Enter the guest.
    Run,
    /// Leave the guest and stay out of it, and drop the token then.
    Pause(Token),
    /// Leave the guest and end.
    Stop,
    /// Answer. The channel for the answer is part of the question: dropped unanswered, it says so.
    Ask(R),
}

/// What a pause waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// One more vCPU is out of the guest.
    Parked,
    /// The machine is over.
    Ended,
}

/// A vCPU that was told to pause and may still be in the guest. Dropped when it is not: it parked, it ended, or
/// it never was.
pub(super) struct Token(pub(super) mpsc::Sender<News>);

impl Drop for Token {
    fn drop(&mut self) {
        // Nobody waits any more if the machine has ended meanwhile.
        let _ = self.0.send(News::Parked);
    }
}

/// Gets a vCPU's thread out of the guest.
pub(crate) trait Kick {
    /// The thread's present stay in the guest, or if it is not there its next one, ends at once.
    fn kick(&self);
}

/// The mailbox of one vCPU.
pub(super) struct Mailbox<R, K> {
    state: Mutex<State<R, K>>,
    arrived: Condvar,
}

struct State<R, K> {
    commands: VecDeque<Command<R>>,
    /// Its owner waits on `arrived`.
    asleep: bool,
    /// Of the owner's thread, while it runs.
    kicker: Option<K>,
    closed: bool,
}

impl<R, K: Kick> Mailbox<R, K> {
    pub(super) fn new() -> Self {
        let state = State { commands: VecDeque::new(), asleep: false, kicker: None, closed: false };
        Self { state: Mutex::new(state), arrived: Condvar::new() }
    }

    /// Leaves a command. One that comes after the owner's end is dropped.
    pub(super) fn send(&self, command: Command<R>) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.commands.push_back(command);
        if state.asleep {
            self.arrived.notify_one();
        } else if let Some(kicker) = &state.kicker {
            // The lock is what keeps the thread from ending meanwhile.
            kicker.kick();
        }
    }

    /// From now on the owner may be in the guest, and is kicked by this.
    pub(super) fn set_kicker(&self, kicker: K) {
        self.state.lock().kicker = Some(kicker);
    }

    /// The next command; sleeps until there is one.
    pub(super) fn receive(&self) -> Command<R> {
        let mut state = self.state.lock();
        loop {
            if let Some(command) = state.commands.pop_front() {
                return command;
            }
            state.asleep = true;
            self.arrived.wait(&mut state);
            state.asleep = false;
        }
    }

    /// The next command, if there is one.
    pub(super) fn try_receive(&self) -> Option<Command<R>> {
        self.state.lock().commands.pop_front()
    }

    /// Nobody looks into it any more: what is in it is dropped, and the thread is kicked no more.
    pub(super) fn close(&self) {
        let left = {
            let mut state = self.state.lock();
            state.closed = true;
            state.kicker = None;
            std::mem::take(&mut state.commands)
        };
        drop(left);
    }
}
