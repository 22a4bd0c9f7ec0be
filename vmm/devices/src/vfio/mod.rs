//! VFIO: a PCI function of the host, handed to the guest (Linux `vfio.rst`, `include/uapi/linux/vfio.h`).
//!
//! ```text
//!   iommu      group and container: guest RAM in the IOMMU's map, nothing else reachable by DMA
//!   ioas       the same through a function's own device file and iommufd
//!   device     what is asked of a function of the host; the kernel answers, in tests memory does
//!   layout     its BARs: which pages the guest reaches by itself, which are trapped
//!   config     its configuration space as the guest sees it
//!   interrupt  MSI-X, MSI and INTx: eventfds the kernel signals, routed as the guest says
//!   function   all of it as a function on the guest's bus, a peer of virtio's
//! ```
//! What the guest cannot do: move the function's power state, its real BARs, its link or its error reporting;
//! write its real MSI-X table; see its option ROM, I/O ports, vital product data or extended capabilities.
//! DMA from one passed function to another's BAR is not mapped.

mod config;
mod device;
mod function;
mod interrupt;
mod ioas;
mod iommu;
mod layout;
mod uapi;

#[cfg(test)]
mod tests;

pub use device::Device;
pub use device::Interrupt;
pub use device::KernelDevice;
pub use device::Region;
pub use function::VfioError;
pub use function::VfioFunction;
pub use ioas::Attachment;
pub use ioas::Cdev;
pub use ioas::Ioas;
pub use ioas::IoasError;
pub use iommu::Group;
pub use iommu::Iommu;
pub use iommu::IommuError;
pub use uapi::Mapping;
