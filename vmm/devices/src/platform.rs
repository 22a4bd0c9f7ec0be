//! What a device may ask of the machine it is in. `kiai-vmm` implements it on KVM, tests on plain memory.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::io_thread::IoThread;

/// Guest RAM as every device sees it: an address space that can change while the guest runs.
///
/// Take a snapshot with `memory()` for each batch of work; never keep one across a wait.
pub type GuestMemory = vm_memory::GuestMemoryAtomic<vm_memory::GuestMemoryMmap>;

/// A message-signalled interrupt (PCI 3.0 §6.8): what is written where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct MsiMessage {
    /// 64-bit address.
    pub address: u64,
    /// The data word.
    pub data: u32,
}

/// One interrupt the device can raise; on KVM an irqfd with its routing entry. Freed on drop.
pub trait MsiVector: Send + Sync {
    /// Sets where the interrupt goes; `None` masks it. A trigger while masked is dropped: the MSI-X table
    /// keeps the pending bit, not this.
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()>;
    /// Raises the interrupt. Cheap, callable from any thread.
    fn trigger(&self) -> io::Result<()>;
    /// The eventfd that raises it, for something outside the process to signal (VFIO, vhost).
    fn eventfd(&self) -> &EventFd;
}

/// Where devices get their interrupts from.
pub trait Interrupts: Send + Sync {
    /// `count` new vectors, masked.
    fn vectors(&self, count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>>;
    /// The vector of I/O APIC pin `pin` (0..24): like any other, but the end of a level-triggered interrupt
    /// routed through it is reported (`IoApic::eoi`). Each pin is asked for once.
    fn ioapic_pin(&self, pin: u8) -> io::Result<Arc<dyn MsiVector>>;
}

/// Guest writes that the hypervisor turns into eventfd signals without leaving to user space (ioeventfd).
pub trait Doorbells: Send + Sync {
    /// From now on any write of any width to `address` signals `event`.
    fn add(&self, address: u64, event: &EventFd) -> io::Result<()>;
    /// Undoes [`Doorbells::add`] with the same arguments.
    fn remove(&self, address: u64, event: &EventFd) -> io::Result<()>;
}

/// Host memory placed into the guest's physical address space (memory slots): a VFIO BAR, a DAX window.
pub trait Mapper: Send + Sync {
    /// Maps `length` bytes at `host_address` to `guest_address`, both page-aligned.
    ///
    /// The caller keeps the host mapping alive until [`Mapper::unmap`] of the same range has returned.
    fn map(&self, guest_address: u64, host_address: u64, length: u64, read_only: bool) -> io::Result<()>;
    /// Takes the range out of the guest.
    fn unmap(&self, guest_address: u64, length: u64) -> io::Result<()>;
}

/// Told of every change of guest RAM: an IOMMU's map, for one.
///
/// Called under the lock of the list of RAM, in the order of the changes; it must not ask for a change itself.
/// On an error nothing of the range may be left behind.
pub trait RamListener: Send + Sync {
    /// `length` bytes at `host_address` are RAM at `guest_address` from now on. All three are page-aligned.
    fn added(&self, guest_address: u64, host_address: u64, length: u64) -> io::Result<()>;
    /// They are going, exactly as one call of [`RamListener::added`] named them; once this returns nobody
    /// reaches them through the listener.
    fn removed(&self, guest_address: u64, length: u64) -> io::Result<()>;
}

/// Says when pages of guest RAM may be given back to the host behind the guest's back: not while a device reaches
/// them without the CPU, because it would go on using those that are gone.
pub trait Discards: Send + Sync {
    /// Runs `discard`, during which nobody can pin RAM, unless it is pinned; whether it ran.
    fn discard(&self, discard: &mut dyn FnMut()) -> bool;
}

/// RAM that comes and goes while the guest runs, in blocks of a region of guest-physical addresses. Every block
/// is unplugged at first. The caller knows which are plugged and asks for nothing twice.
pub trait PluggableRam: Send + Sync {
    /// Makes `length` bytes from `offset` of the region RAM, zeroed, for the guest and every device. On an
    /// error nothing is plugged.
    fn plug(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Takes them away again and gives them back to the host. On an error all of them stay plugged.
    fn unplug(&self, offset: u64, length: u64) -> io::Result<()>;
}

/// What a device's thread is for, which decides what it may ask of the host's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Devices that are idle most of the time, all on one thread: entropy, the balloon, memory, the console.
    Shared,
    /// The queue of a disk.
    Disk,
    /// A pair of queues of a network interface.
    Network,
    /// Streams between the guest and this process.
    Sockets,
    /// A directory of the host.
    Files,
}

impl Role {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Shared, Self::Disk, Self::Network, Self::Sockets, Self::Files];

    /// What such a thread is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "virtio-shared",
            Self::Disk => "virtio-blk",
            Self::Network => "virtio-net",
            Self::Sockets => "virtio-vsock",
            Self::Files => "virtio-fs",
        }
    }
}

/// Where devices have their work done.
pub trait Threads: Send + Sync {
    /// A thread for a device that is being made: the one that all share, or a new one. Not to be called from a
    /// thread that runs the guest.
    fn thread(&self, role: Role) -> io::Result<Arc<IoThread>>;
}

/// All of it, as a bus needs it to place its functions.
#[derive(Clone)]
pub struct Platform {
    /// Interrupts.
    pub interrupts: Arc<dyn Interrupts>,
    /// Doorbells.
    pub doorbells: Arc<dyn Doorbells>,
    /// Mappings.
    pub mapper: Arc<dyn Mapper>,
    /// Threads.
    pub threads: Arc<dyn Threads>,
}
