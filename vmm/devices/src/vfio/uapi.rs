#![expect(unsafe_code, reason = "ioctls and device memory have no safe form")]
//! The kernel's interface (`include/uapi/linux/vfio.h`, `iommufd.h`): numbers, structures, and one function for each
//! call.
//!
//! Variable answers are read as bytes and taken apart with bounds checked, so a kernel that grows a structure
//! costs nothing.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::ptr::NonNull;

/// `_IO(';', 100 + n)`.
const fn request(n: u64) -> u64 {
    (b';' as u64) << 8 | (100 + n)
}

const GET_API_VERSION: u64 = request(0);
const CHECK_EXTENSION: u64 = request(1);
const SET_IOMMU: u64 = request(2);
const GROUP_GET_STATUS: u64 = request(3);
const GROUP_SET_CONTAINER: u64 = request(4);
const GROUP_GET_DEVICE_FD: u64 = request(6);
const DEVICE_GET_INFO: u64 = request(7);
const DEVICE_GET_REGION_INFO: u64 = request(8);
const DEVICE_GET_IRQ_INFO: u64 = request(9);
const DEVICE_SET_IRQS: u64 = request(10);
const DEVICE_RESET: u64 = request(11);
const IOMMU_GET_INFO: u64 = request(12);
const IOMMU_MAP_DMA: u64 = request(13);
const IOMMU_UNMAP_DMA: u64 = request(14);
const DEVICE_BIND_IOMMUFD: u64 = request(18);
const DEVICE_ATTACH_IOMMUFD_PT: u64 = request(19);
const DEVICE_DETACH_IOMMUFD_PT: u64 = request(20);

/// `_IO(';', 0x80 + n)`: those of iommufd, which come after VFIO's.
const fn iommufd_request(n: u64) -> u64 {
    (b';' as u64) << 8 | (0x80 + n)
}

const IOAS_ALLOC: u64 = iommufd_request(1);
const IOAS_IOVA_RANGES: u64 = iommufd_request(4);
const IOAS_MAP: u64 = iommufd_request(5);
const IOAS_UNMAP: u64 = iommufd_request(6);

const API_VERSION: i32 = 0;
const TYPE1V2_IOMMU: u64 = 3;
const GROUP_VIABLE: u32 = 1;
const DMA_READ_WRITE: u32 = 3;
/// At the address that is given, to be written and read.
const IOAS_MAP_FIXED_READ_WRITE: u32 = 7;

/// Capability ids of a region and of an IOMMU.
const CAP_SPARSE_MMAP: u16 = 1;
const CAP_IOVA_RANGE: u16 = 1;

/// Flags of a device, a region, and an interrupt's set-up.
pub(super) const DEVICE_RESETS: u32 = 1;
pub(super) const DEVICE_PCI: u32 = 2;
pub(super) const REGION_MMAP: u32 = 4;
pub(super) const IRQ_DATA_NONE: u32 = 1;
pub(super) const IRQ_DATA_EVENTFD: u32 = 4;
pub(super) const IRQ_UNMASK: u32 = 16;
pub(super) const IRQ_TRIGGER: u32 = 32;

/// No answer of the kernel is longer; the longest is a list of a few dozen ranges.
const LONGEST_ANSWER: usize = 64 << 10;

fn call(fd: BorrowedFd<'_>, request: u64, argument: u64) -> io::Result<i32> {
    // SAFETY: for the requests of this function's callers the argument is a plain number, not a pointer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A call whose argument is a structure that starts with its own size. `bytes` is filled in and updated.
fn call_with(fd: BorrowedFd<'_>, request: u64, bytes: &mut [u8]) -> io::Result<i32> {
    let size = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    bytes[..4].copy_from_slice(&size.to_ne_bytes());
    // SAFETY: the kernel reads and writes at most as many bytes as the structure's first field says, and that
    // is the length of `bytes`, which is borrowed for the call. The kernel copies, so alignment is no matter.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, bytes.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Asks for a structure of `fixed` bytes whose first words after the size are `input`, with what follows it.
fn answer(fd: BorrowedFd<'_>, request: u64, fixed: usize, input: &[u32]) -> io::Result<Vec<u8>> {
    let mut length = fixed;
    loop {
        let mut bytes = vec![0; length];
        for (i, word) in input.iter().enumerate() {
            bytes[4 + 4 * i..8 + 4 * i].copy_from_slice(&word.to_ne_bytes());
        }
        call_with(fd, request, &mut bytes)?;
        // The kernel says how much it would have told.
        let wanted = word(&bytes, 0)? as usize;
        if wanted <= length {
            return Ok(bytes);
        }
        if wanted > LONGEST_ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        length = wanted;
    }
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let word = bytes.get(at..at + 4).ok_or(io::ErrorKind::InvalidData)?;
    Ok(u32::from_ne_bytes(word.try_into().expect("four bytes")))
}

fn long(bytes: &[u8], at: usize) -> io::Result<u64> {
    let long = bytes.get(at..at + 8).ok_or(io::ErrorKind::InvalidData)?;
    Ok(u64::from_ne_bytes(long.try_into().expect("eight bytes")))
}

/// The pairs of 64-bit numbers in the capability `id` of an answer's chain, which starts at `first`; `None` if
/// it is not there. Both capabilities used here are lists of such pairs.
fn pairs(bytes: &[u8], first: u32, id: u16) -> io::Result<Option<Vec<(u64, u64)>>> {
    let mut at = first as usize;
    // Each step goes forward, so the chain ends.
    while at != 0 {
        let header = word(bytes, at)?;
        if header & 0xffff == u32::from(id) {
            let count = word(bytes, at + 8)? as usize;
            let pair = |i: usize| Ok((long(bytes, at + 16 + 16 * i)?, long(bytes, at + 24 + 16 * i)?));
            return (0..count).map(pair).collect::<io::Result<_>>().map(Some);
        }
        let next = word(bytes, at + 4)? as usize;
        if next != 0 && next <= at {
            return Err(io::ErrorKind::InvalidData.into());
        }
        at = next;
    }
    Ok(None)
}

/// Whether `container` speaks this interface and knows the second version of the type 1 IOMMU.
pub(super) fn is_usable(container: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(call(container, GET_API_VERSION, 0)? == API_VERSION
        && call(container, CHECK_EXTENSION, TYPE1V2_IOMMU)? != 0)
}

/// Whether every device of the group is free to be used (vfio.rst, "viable").
pub(super) fn is_viable(group: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(word(&answer(group, GROUP_GET_STATUS, 8, &[])?, 4)? & GROUP_VIABLE != 0)
}

/// Puts a group into a container.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let fd: RawFd = container.as_raw_fd();
    // SAFETY: the kernel reads one int, which lives until the call returns.
    let result = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_SET_CONTAINER, &raw const fd) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Chooses the IOMMU driver of a container that has a group.
pub(super) fn set_iommu(container: BorrowedFd<'_>) -> io::Result<()> {
    call(container, SET_IOMMU, TYPE1V2_IOMMU).map(drop)
}

/// The ranges of addresses a device may use, first and last. Empty: the kernel does not say.
pub(super) fn apertures(container: BorrowedFd<'_>) -> io::Result<Vec<(u64, u64)>> {
    const FLAG_CAPS: u32 = 2;
    let bytes = answer(container, IOMMU_GET_INFO, 24, &[])?;
    if word(&bytes, 4)? & FLAG_CAPS == 0 {
        return Ok(Vec::new());
    }
    Ok(pairs(&bytes, word(&bytes, 16)?, CAP_IOVA_RANGE)?.unwrap_or_default())
}

/// Lets devices read and write `length` bytes of this process at `host`, which they address as `at`.
///
/// The pages stay pinned until they are unmapped: the kernel holds them itself, whatever the process does.
pub(super) fn map_dma(container: BorrowedFd<'_>, at: u64, host: u64, length: u64) -> io::Result<()> {
    let mut bytes = [0; 32];
    bytes[4..8].copy_from_slice(&DMA_READ_WRITE.to_ne_bytes());
    bytes[8..16].copy_from_slice(&host.to_ne_bytes());
    bytes[16..24].copy_from_slice(&at.to_ne_bytes());
    bytes[24..].copy_from_slice(&length.to_ne_bytes());
    call_with(container, IOMMU_MAP_DMA, &mut bytes).map(drop)
}

/// Undoes [`map_dma`].
pub(super) fn unmap_dma(container: BorrowedFd<'_>, at: u64, length: u64) -> io::Result<()> {
    let mut bytes = [0; 24];
    bytes[8..16].copy_from_slice(&at.to_ne_bytes());
    bytes[16..].copy_from_slice(&length.to_ne_bytes());
    call_with(container, IOMMU_UNMAP_DMA, &mut bytes)?;
    // What was unmapped comes back in the size.
    if long(&bytes, 16)? == length { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Makes a function usable that was opened by its own file, and an iommufd its way to memory. It reaches none yet.
pub(super) fn bind_iommufd(device: BorrowedFd<'_>, iommufd: BorrowedFd<'_>) -> io::Result<()> {
    let mut bytes = [0; 16];
    bytes[8..12].copy_from_slice(&iommufd.as_raw_fd().to_ne_bytes());
    call_with(device, DEVICE_BIND_IOMMUFD, &mut bytes).map(drop)
}

/// Puts a bound function behind an address space of its iommufd.
pub(super) fn attach_ioas(device: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
    let mut bytes = [0; 12];
    bytes[8..].copy_from_slice(&ioas.to_ne_bytes());
    call_with(device, DEVICE_ATTACH_IOMMUFD_PT, &mut bytes).map(drop)
}

/// Undoes [`attach_ioas`]: the function reaches no memory any more.
pub(super) fn detach_ioas(device: BorrowedFd<'_>) -> io::Result<()> {
    call_with(device, DEVICE_DETACH_IOMMUFD_PT, &mut [0; 8]).map(drop)
}

/// Makes an empty address space; its id. It goes with the iommufd.
pub(super) fn allocate_ioas(iommufd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes = [0; 12];
    call_with(iommufd, IOAS_ALLOC, &mut bytes)?;
    word(&bytes, 8)
}

/// The ranges of addresses that every function behind an address space may use, first and last.
pub(super) fn ioas_ranges(iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<Vec<(u64, u64)>> {
    let mut room: u32 = 16;
    loop {
        let mut ranges = vec![[0_u64; 2]; room as usize];
        let mut bytes = [0; 32];
        let place = ranges.as_mut_ptr() as u64;
        bytes[4..8].copy_from_slice(&ioas.to_ne_bytes());
        bytes[8..12].copy_from_slice(&room.to_ne_bytes());
        bytes[16..24].copy_from_slice(&place.to_ne_bytes());
        // Besides the structure the kernel writes at most `room` pairs to `place`, which has room for them and lives.
        let done = call_with(iommufd, IOAS_IOVA_RANGES, &mut bytes);
        let wanted = word(&bytes, 8)?;
        match done {
            Ok(_) if wanted <= room => {
                ranges.truncate(wanted as usize);
                return Ok(ranges.into_iter().map(|[first, last]| (first, last)).collect());
            }
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) && wanted > room => {
                if wanted as usize > LONGEST_ANSWER / size_of::<[u64; 2]>() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                room = wanted;
            }
            Err(e) => return Err(e),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// As [`map_dma`], in an address space.
pub(super) fn map_ioas(
    iommufd: BorrowedFd<'_>,
    ioas: u32,
    at: u64,
    host: u64,
    length: u64,
) -> io::Result<()> {
    let mut bytes = [0; 40];
    bytes[4..8].copy_from_slice(&IOAS_MAP_FIXED_READ_WRITE.to_ne_bytes());
    bytes[8..12].copy_from_slice(&ioas.to_ne_bytes());
    bytes[16..24].copy_from_slice(&host.to_ne_bytes());
    bytes[24..32].copy_from_slice(&length.to_ne_bytes());
    bytes[32..].copy_from_slice(&at.to_ne_bytes());
    call_with(iommufd, IOAS_MAP, &mut bytes).map(drop)
}

/// Undoes [`map_ioas`].
pub(super) fn unmap_ioas(iommufd: BorrowedFd<'_>, ioas: u32, at: u64, length: u64) -> io::Result<()> {
    let mut bytes = [0; 24];
    bytes[4..8].copy_from_slice(&ioas.to_ne_bytes());
    bytes[8..16].copy_from_slice(&at.to_ne_bytes());
    bytes[16..].copy_from_slice(&length.to_ne_bytes());
    call_with(iommufd, IOAS_UNMAP, &mut bytes)?;
    // What was unmapped comes back in the length.
    if long(&bytes, 16)? == length { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Opens the group's device of that name.
pub(super) fn device(group: BorrowedFd<'_>, name: &CStr) -> io::Result<File> {
    // SAFETY: the kernel reads a string that ends with a NUL.
    let fd = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
    Ok(file)
}

/// What a device is: its flags.
pub(super) fn device_flags(device: BorrowedFd<'_>) -> io::Result<u32> {
    word(&answer(device, DEVICE_GET_INFO, 16, &[])?, 4)
}

/// A region as the kernel describes it.
pub(super) struct RegionInfo {
    pub(super) flags: u32,
    pub(super) size: u64,
    /// Where it is in the device's file.
    pub(super) offset: u64,
    /// The parts that can be mapped, (offset, bytes), if only some can.
    pub(super) sparse: Option<Vec<(u64, u64)>>,
}

/// Describes a region.
pub(super) fn region(device: BorrowedFd<'_>, index: u32) -> io::Result<RegionInfo> {
    const FLAG_CAPS: u32 = 8;
    let bytes = answer(device, DEVICE_GET_REGION_INFO, 32, &[0, index])?;
    let flags = word(&bytes, 4)?;
    let first = if flags & FLAG_CAPS != 0 { word(&bytes, 12)? } else { 0 };
    let sparse = pairs(&bytes, first, CAP_SPARSE_MMAP)?;
    Ok(RegionInfo { flags, size: long(&bytes, 16)?, offset: long(&bytes, 24)?, sparse })
}

/// How many interrupts there are of a kind.
pub(super) fn irq_count(device: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    word(&answer(device, DEVICE_GET_IRQ_INFO, 16, &[0, index])?, 12)
}

/// Sets up interrupts of a kind from the first on; no events and `IRQ_DATA_NONE` with a count of 0 ends them.
pub(super) fn set_irqs(device: BorrowedFd<'_>, index: u32, flags: u32, events: &[RawFd]) -> io::Result<()> {
    let mut bytes = vec![0; 20 + 4 * events.len()];
    let count = u32::try_from(events.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    for (at, value) in [(4, flags), (8, index), (12, 0), (16, count)] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    for (i, event) in events.iter().enumerate() {
        bytes[20 + 4 * i..24 + 4 * i].copy_from_slice(&event.to_ne_bytes());
    }
    match call_with(device, DEVICE_SET_IRQS, &mut bytes)? {
        0 => Ok(()),
        // Fewer than asked for could be had, and so none was set up.
        most => Err(io::Error::other(format!("the host has {most} interrupts of {count}"))),
    }
}

/// Unmasks the one interrupt of a kind.
pub(super) fn unmask_irq(device: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut bytes = [0; 20];
    for (at, value) in [(4, IRQ_DATA_NONE | IRQ_UNMASK), (8, index), (16, 1)] {
        bytes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(value));
    }
    call_with(device, DEVICE_SET_IRQS, &mut bytes).map(drop)
}

/// Resets the function.
pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    call(device, DEVICE_RESET, 0).map(drop)
}

/// A part of a region in this process. Unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: an address range of the process, which this never reads or writes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of `file` at `offset`, both multiples of the page size.
    pub fn of(file: impl AsFd, offset: u64, length: u64) -> io::Result<Self> {
        use rustix::mm::MapFlags;
        use rustix::mm::ProtFlags;
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without an address to map at, the kernel chooses one where nothing is.
        let address = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file.as_fd(), offset)
        }?;
        let address = NonNull::new(address).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { address, length })
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.address.as_ptr() as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is what `of` has mapped, and whoever was told of its address has let go of it by the
        // contract of `Region::Mapped`.
        if let Err(e) = unsafe { rustix::mm::munmap(self.address.as_ptr(), self.length) } {
            tracing::error!("a region stays mapped: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with two capabilities: one of another kind, then ranges.
    fn chain() -> Vec<u8> {
        let mut bytes = vec![0; 24];
        bytes.extend([3, 0, 1, 0]);
        bytes.extend(32u32.to_ne_bytes());
        bytes.extend([1, 0, 1, 0]);
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(2u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        for number in [0u64, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_ffff] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_capability_is_found_behind_another() {
        let found = pairs(&chain(), 24, 1).unwrap().unwrap();
        assert_eq!(found, [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]);
        assert_eq!(pairs(&chain(), 24, 9).unwrap(), None);
        assert_eq!(pairs(&chain(), 0, 1).unwrap(), None);
    }

    #[test]
    fn a_chain_that_leads_back_or_out_is_an_error() {
        let mut back = chain();
        back[28..32].copy_from_slice(&24u32.to_ne_bytes());
        assert!(pairs(&back, 24, 9).is_err());
        assert!(pairs(&chain(), 4000, 1).is_err());
        let mut many = chain();
        many[40..44].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(pairs(&many, 24, 1).is_err());
    }
}
