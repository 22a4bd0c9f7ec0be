//! Devices' threads, on real ones and in many orders.

pub(crate) mod alone;
mod devices;
pub(crate) mod interleaved;
mod work;
