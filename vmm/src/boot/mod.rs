//! Direct boot: the kernel and its initrd in guest RAM, and the structure that tells the kernel what is where.
//!
//! An ELF `vmlinux` enters through its PVH note (Xen `docs/misc/pvh.pandoc`); a bzImage through the 32-bit
//! boot protocol (Linux `Documentation/arch/x86/boot.rst`). Both start a vCPU in flat 32-bit protected mode.

mod bzimage;
pub(crate) mod command_line;
mod kernel;
mod pvh;

pub(crate) use kernel::load;

use vm_memory::GuestAddress;

/// Where vCPU 0 starts, and the one register each protocol passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// First instruction, physical.
    pub(crate) address: GuestAddress,
    /// EBX (PVH): start information; ESI (bzImage): zero page. The other is zero.
    pub(crate) protocol: Protocol,
}

/// How the kernel takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// PVH: EBX points to `hvm_start_info`.
    Pvh,
    /// Linux 32-bit boot protocol: ESI points to `boot_params`.
    Linux32,
}

/// Why a guest cannot be booted. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither an ELF file nor a bzImage.
    #[error("kernel {name}: not an ELF vmlinux nor a bzImage")]
    NotAKernel {
        /// The file.
        name: String,
    },
    /// The image is damaged or does not fit into guest memory.
    #[error("kernel {name}: {reason}")]
    Kernel {
        /// The file.
        name: String,
        /// What the loader says.
        reason: String,
    },
    /// An ELF kernel without a PVH entry note.
    #[error("kernel {name}: no PVH entry note (build it with CONFIG_PVH=y)")]
    NoPvhNote {
        /// The file.
        name: String,
    },
    /// The initrd cannot be read, or there is no room behind the kernel.
    #[error("initrd {name}: {reason}")]
    Initrd {
        /// The file.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// The command line is too long or has characters that are not printable ASCII.
    #[error("kernel command line: {0}")]
    CommandLine(String),
}
