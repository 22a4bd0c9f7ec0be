//! The code of devices' threads, compiled again with threads, locks, events and sockets whose order a check chooses.

pub(in crate::virtio) mod os;
mod worker_checks;

#[path = "../../worker.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
#[expect(dead_code, unreachable_pub, reason = "the checks use a part of it")]
pub(in crate::virtio) mod worker;
