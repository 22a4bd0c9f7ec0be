//! Reaps every child of PID 1 and reports its exit to the tasks that wait for it.
//!
//! The agent is the parent of its own helpers, of each container's init and of every orphan of the guest.
//! Only this module may call `wait`. A process can end before its pid is known (its helper has not answered yet), so an
//! unclaimed exit is kept as long as an [`Expectation`] is alive.

use std::collections::HashMap;
use std::sync::Arc;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use parking_lot::Mutex;
use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::panics;

/// How a process ended, by the guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestExit {
    /// Exit status: 0..=255, or 128 + signal.
    pub status: u32,
    /// When it was reaped, CLOCK_REALTIME of the guest.
    pub at: Timespec,
}

/// Becomes `Some` once the process has ended.
pub type ExitWatch = watch::Receiver<Option<GuestExit>>;

/// Reaps the agent's children.
#[derive(Debug, Default)]
pub struct Reaper {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    claimed: HashMap<i32, watch::Sender<Option<GuestExit>>>,
    unclaimed: HashMap<i32, GuestExit>,
    expectations: usize,
}

impl Table {
    fn record(&mut self, pid: i32, exit: GuestExit) {
        if let Some(sender) = self.claimed.remove(&pid) {
            sender.send_replace(Some(exit));
        } else if self.expectations > 0 {
            self.unclaimed.insert(pid, exit);
        }
    }
}

impl Reaper {
    /// Starts to reap; children that have ended before are reaped as well.
    ///
    /// Must be called within a tokio runtime with I/O enabled, once.
    pub fn start() -> std::io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let children = signal(SignalKind::child())?;
        panics::spawn_vital("reaper", reaper.clone().run(children));
        Ok(reaper)
    }

    /// Announces that a process will be started; to be held from before its start until its pid is claimed.
    pub fn expect(self: &Arc<Self>) -> Expectation {
        self.table.lock().expectations += 1;
        Expectation { reaper: self.clone() }
    }

    async fn run(self: Arc<Self>, mut children: Signal) {
        loop {
            self.reap();
            // Signals coalesce; `reap` reaps every ended child each time.
            if children.recv().await.is_none() {
                return;
            }
        }
    }

    fn reap(&self) {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code.cast_unsigned() & 0xff),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + (signal as i32).cast_unsigned()),
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!("wait: {error}");
                    return;
                }
            };
            let exit = GuestExit { status, at: clock_gettime(ClockId::Realtime) };
            self.table.lock().record(pid.as_raw(), exit);
        }
    }
}

/// While it is alive, unclaimed exits are kept.
#[derive(Debug)]
pub struct Expectation {
    reaper: Arc<Reaper>,
}

impl Expectation {
    /// Watches process `pid`, which may have ended already.
    pub fn claim(&self, pid: i32) -> ExitWatch {
        let mut table = self.reaper.table.lock();
        let known = table.unclaimed.remove(&pid);
        let (sender, receiver) = watch::channel(known);
        if known.is_none() {
            table.claimed.insert(pid, sender);
        }
        receiver
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut table = self.reaper.table.lock();
        table.expectations -= 1;
        if table.expectations == 0 {
            table.unclaimed.clear();
        }
    }
}

/// Waits until a process has ended.
pub async fn ended(watch: &mut ExitWatch) -> GuestExit {
    // The sender is dropped only after it has sent, and the table lives as long as the agent.
    loop {
        if let Some(exit) = *watch.borrow_and_update() {
            return exit;
        }
        if watch.changed().await.is_err() && watch.borrow().is_none() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: u32) -> GuestExit {
        GuestExit { status, at: Timespec { tv_sec: 1, tv_nsec: 0 } }
    }

    #[tokio::test]
    async fn an_exit_that_comes_before_its_claim_is_not_lost() {
        let reaper = Arc::new(Reaper::default());
        let expectation = reaper.expect();
        reaper.table.lock().record(7, exit(3));
        assert_eq!(ended(&mut expectation.claim(7)).await, exit(3));
    }

    #[tokio::test]
    async fn an_exit_that_comes_after_its_claim_is_reported() {
        let reaper = Arc::new(Reaper::default());
        let mut watch = reaper.expect().claim(7);
        reaper.table.lock().record(8, exit(1));
        assert!(watch.borrow().is_none());
        reaper.table.lock().record(7, exit(137));
        assert_eq!(ended(&mut watch).await, exit(137));
    }

    #[test]
    fn no_exit_is_kept_without_an_expectation() {
        let reaper = Arc::new(Reaper::default());
        reaper.table.lock().record(7, exit(0));
        let first = reaper.expect();
        let second = reaper.expect();
        reaper.table.lock().record(8, exit(0));
        drop(first);
        assert_eq!(reaper.table.lock().unclaimed.len(), 1);
        drop(second);
        assert!(reaper.table.lock().unclaimed.is_empty());
    }
}
