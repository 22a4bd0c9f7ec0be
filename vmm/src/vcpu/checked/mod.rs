//! The vCPU's actor built of shuttle's primitives, which try how the steps of its threads can interleave; a thread
//! that waits for ever is a failure.
#![expect(clippy::duplicate_mod, reason = "the same code as production's, built of other primitives")]

#[path = "../actor.rs"]
mod actor;
#[path = "../control.rs"]
mod control;
#[path = "../mailbox.rs"]
mod mailbox;
mod sync;
mod tests;
