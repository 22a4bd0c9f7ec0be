//! Models of the hardware a microVM sees: buses, PCI functions, virtio devices, the serial port.
//!
//! What it must not know: KVM (it asks for interrupts, doorbells and mappings through [`platform`]), tokio,
//! containers. A device gets open things (files, sockets, taps), never paths to open.
//!
//! Reading order: [`bus`] routes a trapped access; [`pci`] gives it a function; [`virtio`] makes the function
//! a device, [`vfio`] makes it one of the host's. What a device does by itself is done on an [`io_thread`].

pub mod bus;
pub mod io_thread;
pub mod ioapic;
pub mod log_limit;
pub mod pci;
pub mod platform;
pub mod serial;
#[cfg(feature = "test-util")]
pub mod testing;
pub mod vfio;
pub mod virtio;
