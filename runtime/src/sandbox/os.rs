//! The lock of the table of assigned devices. In a module of its own, so that a check can compile the code that uses
//! it again with another lock, whose order the check chooses.

pub(super) use tokio::sync::Mutex as AsyncMutex;
