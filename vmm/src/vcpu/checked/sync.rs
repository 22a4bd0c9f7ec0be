//! Shuttle's primitives with the faces of those in `super::super::sync`. shuttle-parking_lot has no condition
//! variable, and one of shuttle's own waits only with a guard of shuttle's own lock.

use std::ops::Deref;
use std::ops::DerefMut;
use std::time::Instant;

use kiai_interleave::shuttle;
pub(super) use kiai_interleave::shuttle::sync::Arc;
pub(super) use kiai_interleave::shuttle::sync::mpsc;

pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

/// Empty only while its thread waits.
pub(super) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(super) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        // A lock that a dying thread held is like any other, as in production.
        MutexGuard(Some(self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().unwrap()
    }
}

pub(super) struct Condvar(shuttle::sync::Condvar);

pub(super) struct TimedOut;

impl TimedOut {
    pub(super) fn timed_out(&self) -> bool {
        false
    }
}

impl Condvar {
    pub(super) fn new() -> Self {
        Self(shuttle::sync::Condvar::new())
    }

    pub(super) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().unwrap();
        guard.0 = Some(self.0.wait(held).unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    /// The deadline is never reached: who waits for it, waits for ever.
    pub(super) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _deadline: Instant) -> TimedOut {
        self.wait(guard);
        TimedOut
    }

    pub(super) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(super) fn notify_all(&self) {
        self.0.notify_all();
    }
}
