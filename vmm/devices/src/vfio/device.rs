//! What is asked of a function of the host. [`KernelDevice`] asks the kernel; tests have one of memory.

use std::any::Any;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::ioas::Cdev;
use super::iommu::Group;
use super::uapi;
use super::uapi::Mapping;

/// Region number of configuration space; BARs are 0 to 5 (`VFIO_PCI_CONFIG_REGION_INDEX`).
pub(super) const CONFIG: u32 = 7;

/// Kinds of interrupt, numbered as VFIO numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// The pin.
    Intx = 0,
    /// Message signalled.
    Msi = 1,
    /// With a table.
    Msix = 2,
}

/// A region of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Region {
    /// Bytes; 0 when the device has no such region.
    pub size: u64,
    /// The parts that can be mapped, (offset, bytes), whole pages.
    pub mappable: Vec<(u64, u64)>,
}

/// A PCI function of the host, open, and if it can be reset then fresh from that. Called from vCPU threads, from several
/// at once.
pub trait Device: Send + Sync {
    /// Describes a region.
    fn region(&self, index: u32) -> io::Result<Region>;
    /// Reads all of `data` from a region.
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` to a region.
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Maps a part of a region that is mappable.
    fn map(&self, region: u32, offset: u64, length: u64) -> io::Result<Mapping>;
    /// How many interrupts of a kind it has.
    fn interrupts(&self, kind: Interrupt) -> io::Result<u32>;
    /// From now on interrupt `n` of the kind signals `events[n]`. No other kind is connected.
    fn connect(&self, kind: Interrupt, events: &[&EventFd]) -> io::Result<()>;
    /// No interrupt of the kind signals anything any more, and the function has it turned off.
    fn disconnect(&self, kind: Interrupt) -> io::Result<()>;
    /// The pin, which is masked each time it signals, may signal again.
    fn unmask_intx(&self) -> io::Result<()>;
    /// Whether it can be reset without touching another function.
    fn can_reset(&self) -> bool;
    /// Resets it. Configuration space and interrupts are afterwards as they were.
    fn reset(&self) -> io::Result<()>;
}

/// A function behind the kernel's `vfio-pci`, which resets it when it is opened, if it can be reset (Linux
/// `vfio_pci_core_enable`). A function level reset takes 100 ms (PCIe 6.0 §6.6.2), so it is not done once more. When it
/// is closed the kernel resets it if it can have its lock.
pub struct KernelDevice {
    file: File,
    resets: bool,
    /// Where each region is in the file; configuration space is the last.
    offsets: [u64; 8],
    /// Its way to the IOMMU's map, and with it the map: gone after the file.
    _keep: Arc<dyn Any + Send + Sync>,
}

impl KernelDevice {
    /// Opens the function of that address ("0000:00:03.0") in a group that has joined an IOMMU. `keep` is held
    /// as long as the function is open.
    pub fn open(group: &Group, address: &str, keep: Arc<dyn Any + Send + Sync>) -> io::Result<Self> {
        let name = CString::new(address).map_err(|_| io::ErrorKind::InvalidInput)?;
        Self::new(uapi::device(group.as_fd(), &name)?, keep)
    }

    /// Opens the function of a device file that is attached to an address space. `keep` is held as long as the
    /// function is open.
    pub fn of_cdev(cdev: &Cdev, keep: Arc<dyn Any + Send + Sync>) -> io::Result<Self> {
        Self::new(cdev.as_fd().try_clone_to_owned()?.into(), keep)
    }

    fn new(file: File, keep: Arc<dyn Any + Send + Sync>) -> io::Result<Self> {
        let flags = uapi::device_flags(file.as_fd())?;
        if flags & uapi::DEVICE_PCI == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no PCI function"));
        }
        let mut offsets = [0; 8];
        for (index, offset) in (0..).zip(&mut offsets) {
            *offset = match uapi::region(file.as_fd(), index) {
                Ok(region) => region.offset,
                // Of the kinds of region a function need not have all.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput && index != CONFIG => 0,
                Err(e) => return Err(e),
            };
        }
        Ok(Self { resets: flags & uapi::DEVICE_RESETS != 0, file, offsets, _keep: keep })
    }

    fn place(&self, region: u32, offset: u64) -> io::Result<u64> {
        let start = usize::try_from(region).ok().and_then(|region| self.offsets.get(region));
        start.and_then(|start| start.checked_add(offset)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Device for KernelDevice {
    fn region(&self, index: u32) -> io::Result<Region> {
        let found = uapi::region(self.file.as_fd(), index)?;
        let mappable = match (found.flags & uapi::REGION_MMAP != 0, found.sparse) {
            (false, _) => Vec::new(),
            (true, Some(areas)) => areas,
            (true, None) => vec![(0, found.size)],
        };
        Ok(Region { size: found.size, mappable })
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, self.place(region, offset)?)
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, self.place(region, offset)?)
    }

    fn map(&self, region: u32, offset: u64, length: u64) -> io::Result<Mapping> {
        Mapping::of(&self.file, self.place(region, offset)?, length)
    }

    fn interrupts(&self, kind: Interrupt) -> io::Result<u32> {
        uapi::irq_count(self.file.as_fd(), kind as u32)
    }

    fn connect(&self, kind: Interrupt, events: &[&EventFd]) -> io::Result<()> {
        let events: Vec<RawFd> = events.iter().map(|event| event.as_raw_fd()).collect();
        uapi::set_irqs(self.file.as_fd(), kind as u32, uapi::IRQ_DATA_EVENTFD | uapi::IRQ_TRIGGER, &events)
    }

    fn disconnect(&self, kind: Interrupt) -> io::Result<()> {
        uapi::set_irqs(self.file.as_fd(), kind as u32, uapi::IRQ_DATA_NONE | uapi::IRQ_TRIGGER, &[])
    }

    fn unmask_intx(&self) -> io::Result<()> {
        uapi::unmask_irq(self.file.as_fd(), Interrupt::Intx as u32)
    }

    fn can_reset(&self) -> bool {
        self.resets
    }

    fn reset(&self) -> io::Result<()> {
        uapi::reset(self.file.as_fd())
    }
}
