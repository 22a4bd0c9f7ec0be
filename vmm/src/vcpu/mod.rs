//! vCPUs: actors on threads of their own. Each parks once and sleeps until its mailbox has a command.
//!
//! `mailbox`, `control` and `actor` know no KVM and are built of `sync`; `checked` builds them of shuttle's
//! primitives and tries how their steps can interleave. `run` is the actor's KVM, `setup` a vCPU's first state,
//! `vcpus` all of a machine's.

mod actor;
#[cfg(test)]
mod checked;
mod control;
mod cpuid;
mod kick;
mod mailbox;
mod run;
mod setup;
mod state;
mod sync;
mod vcpus;

pub(crate) use cpuid::Topology;
pub(crate) use kick::install_signal_handler;
pub(crate) use run::Buses;
pub(crate) use setup::Maker;
pub use setup::SetupError;
pub(crate) use state::VcpuState;
pub(crate) use state::host_tsc;
pub use vcpus::VcpuError;
pub(crate) use vcpus::Vcpus;

/// What the vCPUs of a machine have been told.
pub(crate) type Control = control::Control<run::KvmCpu>;
