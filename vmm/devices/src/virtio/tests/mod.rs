//! What devices have in common, on real threads and in many orders.

pub(super) mod interleaved;
mod worker;
