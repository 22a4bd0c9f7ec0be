//! Groups and their container: what a passed function can reach by DMA is what is mapped here, guest RAM
//! (vfio.rst, "Groups, Devices, and IOMMUs").
//!
//! One container serves all groups of a machine, so each page of guest RAM is pinned once.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use super::uapi;
use crate::platform::RamListener;

/// An open group of functions that the hardware cannot keep apart (`/dev/vfio/NUMBER`). The kernel lets it be
/// opened once, so whoever passes two functions of it shares this.
#[derive(Debug)]
pub struct Group {
    name: String,
    file: OwnedFd,
}

impl Group {
    /// `name` is for errors: the group's number.
    pub fn new(name: impl Into<String>, file: OwnedFd) -> Self {
        Self { name: name.into(), file }
    }

    /// Its number.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why a group has no way to guest memory.
#[derive(Debug, thiserror::Error)]
pub enum IommuError {
    /// What was opened as `/dev/vfio/vfio` is something else, or the kernel lacks the IOMMU's driver.
    #[error("the VFIO container has no type 1 IOMMU (is vfio_iommu_type1 loaded?)")]
    Container,
    /// Some member of the group is in the hands of a driver of the host.
    #[error("IOMMU group {0} is not viable: a function of it has a driver other than vfio-pci")]
    NotViable(String),
    /// The kernel refused.
    #[error("IOMMU group {group}: {step}")]
    Kernel {
        /// Number of the group.
        group: String,
        /// What was asked for.
        step: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// A container with its IOMMU. Dropping it takes every mapping away, once the groups in it are closed too.
#[derive(Debug)]
pub struct Iommu {
    container: OwnedFd,
    /// First and last address of each range that devices can use. Empty: the kernel does not say.
    apertures: Vec<(u64, u64)>,
}

impl Iommu {
    /// Makes a container (an open `/dev/vfio/vfio`) an IOMMU with `first` in it. Nothing is mapped.
    pub fn new(container: OwnedFd, first: &Group) -> Result<Self, IommuError> {
        if !uapi::is_usable(container.as_fd()).unwrap_or(false) {
            return Err(IommuError::Container);
        }
        let mut iommu = Self { container, apertures: Vec::new() };
        iommu.join(first)?;
        let at = |step| failed(first, step);
        uapi::set_iommu(iommu.container.as_fd()).map_err(at("choose the type 1 IOMMU"))?;
        iommu.apertures = uapi::apertures(iommu.container.as_fd()).map_err(at("read the aperture"))?;
        Ok(iommu)
    }

    /// Puts a further group behind the same map.
    pub fn join(&self, group: &Group) -> Result<(), IommuError> {
        if !uapi::is_viable(group.as_fd()).map_err(failed(group, "read its status"))? {
            return Err(IommuError::NotViable(group.name.clone()));
        }
        uapi::set_container(group.as_fd(), self.container.as_fd())
            .map_err(failed(group, "join the container"))
    }
}

fn failed(group: &Group, step: &'static str) -> impl Fn(io::Error) -> IommuError {
    let group = group.name.clone();
    move |source| IommuError::Kernel { group: group.clone(), step, source }
}

fn reaches(apertures: &[(u64, u64)], start: u64, length: u64) -> bool {
    let Some(last) = length.checked_sub(1).and_then(|more| start.checked_add(more)) else { return false };
    apertures.is_empty() || apertures.iter().any(|&(from, to)| from <= start && last <= to)
}

/// Fails if devices that can use `apertures` cannot use guest memory from `start` on.
pub(super) fn check_reach(apertures: &[(u64, u64)], start: u64, length: u64) -> io::Result<()> {
    if reaches(apertures, start, length) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the IOMMU does not reach guest memory {start:#x}+{length:#x}, only {apertures:x?}"
    )))
}

/// What to say of guest memory that the kernel does not map.
pub(super) fn not_mapped(start: u64, length: u64) -> impl Fn(io::Error) -> io::Error {
    move |e| {
        let hint = match e.kind() {
            io::ErrorKind::OutOfMemory => " (all of it is pinned: does `ulimit -l` allow that?)",
            _ => "",
        };
        io::Error::new(e.kind(), format!("map guest memory {start:#x}+{length:#x}: {e}{hint}"))
    }
}

impl RamListener for Iommu {
    fn added(&self, guest_address: u64, host_address: u64, length: u64) -> io::Result<()> {
        check_reach(&self.apertures, guest_address, length)?;
        uapi::map_dma(self.container.as_fd(), guest_address, host_address, length)
            .map_err(not_mapped(guest_address, length))
    }

    fn removed(&self, guest_address: u64, length: u64) -> io::Result<()> {
        uapi::unmap_dma(self.container.as_fd(), guest_address, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_over_a_hole_of_the_aperture_is_out_of_reach() {
        let apertures = [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)];
        assert!(reaches(&apertures, 0, 0xc000_0000));
        assert!(reaches(&apertures, 0x1_0000_0000, 0x4000_0000));
        assert!(!reaches(&apertures, 0xfe00_0000, 0x200_0000), "the MSI window");
        assert!(!reaches(&apertures, 0x7f_ffff_f000, 0x2000));
        assert!(!reaches(&apertures, u64::MAX, 2));
        assert!(reaches(&[], 0x7f_ffff_f000, 0x2000), "a kernel that does not say is not asked");
    }

    #[test]
    fn what_is_no_container_is_refused() {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let error = Iommu::new(file(), &Group::new("7", file())).unwrap_err();
        assert!(matches!(error, IommuError::Container), "{error}");
    }
}
