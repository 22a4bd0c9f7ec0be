//! Devices' threads, on real ones and in many orders.

pub(crate) mod alone;
pub(crate) mod interleaved;
mod work;
