//! From registers to a device. `core` is what virtio says of any transport; `pci` is what PCI adds.

pub mod core;
pub mod pci;
pub mod state;

#[cfg(test)]
mod tests;
