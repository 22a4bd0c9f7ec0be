//! The lock that loans live by. By itself, so that a check can compile the code that uses it again with another,
//! whose order it chooses.

pub(super) use tokio::sync::Mutex as AsyncMutex;
