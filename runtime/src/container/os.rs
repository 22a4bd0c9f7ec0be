//! The locks of process states and of the table of containers. In a module of their own, so that a check can compile
//! the code that uses them again with other locks, whose order the check chooses.

pub(super) use parking_lot::Mutex;
pub(super) use tokio::sync::Mutex as AsyncMutex;
pub(super) use tokio::sync::watch;
