//! What the actor is built of. Its tests put shuttle's in place of these (`vcpu/checked`).

pub(super) use std::sync::Arc;
pub(super) use std::sync::mpsc;

pub(super) use parking_lot::Condvar;
pub(super) use parking_lot::Mutex;
