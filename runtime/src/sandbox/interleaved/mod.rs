//! The table of assigned devices, compiled again with a lock and tasks whose order a check chooses.

mod assignment_checks;

use super::AssignError;
use super::assign;
use crate::interleaved as os;

#[path = "../assignments.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
mod assignments;
