//! vCPUs: their first state, their threads, and what an exit leads to.

mod cpuid;
mod kick;
mod run;
mod setup;

pub(crate) use kick::install_signal_handler;
pub(crate) use run::Buses;
pub(crate) use run::Control;
pub(crate) use run::Vcpus;
pub use setup::SetupError;
pub(crate) use setup::create;
