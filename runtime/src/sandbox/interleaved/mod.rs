//! What is lent, kept by code that is compiled again with a lock and tasks whose order a check chooses.

mod desk_checks;

use super::LendError;
use super::lend;
use crate::interleaved as os;

#[path = "../desk.rs"]
#[expect(clippy::duplicate_mod, reason = "the product's own source is what is checked")]
mod desk;
