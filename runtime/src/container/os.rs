//! The locks that states of processes and tables of containers live by. In one place, so that a check can compile
//! the code that uses them again with others, whose order it chooses.

pub(super) use parking_lot::Mutex;
pub(super) use tokio::sync::Mutex as AsyncMutex;
pub(super) use tokio::sync::watch;
