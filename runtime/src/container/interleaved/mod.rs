//! The states of processes and the table of containers, compiled again with locks and tasks whose order a check
//! chooses.

mod lifecycle_checks;
mod table_checks;

use super::Exit;
use super::ProcessState;
use crate::interleaved as os;

#[path = "../lifecycle.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
mod lifecycle;

#[path = "../table.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
#[expect(unreachable_pub, reason = "the shim uses it too")]
mod table;
