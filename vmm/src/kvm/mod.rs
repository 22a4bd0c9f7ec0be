//! KVM behind the traits of `kiai_devices::platform`: interrupts on irqfds, doorbells on ioeventfds, mappings
//! on memory slots. The only folder, with `vcpu`, that issues KVM ioctls.

mod doorbell;
mod interrupt;
mod slots;
mod vfio;
mod vm;

pub(crate) use doorbell::KvmDoorbells;
pub(crate) use interrupt::KvmInterrupts;
pub(crate) use vfio::KvmVfio;
pub use vm::KvmError;
pub(crate) use vm::equip;
pub(crate) use vm::open;
