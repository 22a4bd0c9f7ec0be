//! Functions opened by their own device files, and an address space of an iommufd (IOAS) that holds what they can
//! reach by DMA: guest RAM (iommufd.rst, "IOMMUFD Objects"; vfio.rst, "VFIO device cdev").
//!
//! One address space serves all such functions of a machine, so each page of guest RAM is pinned once. That nobody
//! else has a function of the same group, the kernel sees to when one is bound.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::iommu;
use super::uapi;
use crate::platform::RamListener;

/// A function's own device file (`/dev/vfio/devices/vfioNUMBER`). Anybody may open it; only one can bind it.
#[derive(Debug)]
pub struct Cdev {
    name: String,
    file: OwnedFd,
}

impl Cdev {
    /// `name` is for errors: the file's path.
    pub fn new(name: impl Into<String>, file: OwnedFd) -> Self {
        Self { name: name.into(), file }
    }

    /// Its path.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for Cdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why a function has no way to guest memory.
#[derive(Debug, thiserror::Error)]
pub enum IoasError {
    /// What was opened as `/dev/iommu` is something else, or refused.
    #[error("allocate an address space of /dev/iommu")]
    Allocate(#[source] io::Error),
    /// It cannot be bound. The kernel's word is the source; what that can mean is in the text.
    #[error("bind {cdev} to /dev/iommu: {meaning}")]
    Bind {
        /// Path of the device file.
        cdev: String,
        /// What can be behind it.
        meaning: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("{cdev}: {step}")]
    Kernel {
        /// Path of the device file.
        cdev: String,
        /// What was asked for.
        step: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// An address space. Dropping it takes every mapping away, once the functions behind it are closed too.
#[derive(Debug)]
pub struct Ioas {
    iommufd: OwnedFd,
    id: u32,
}

impl Ioas {
    /// Makes an address space of an open `/dev/iommu`. Nothing is mapped.
    pub fn new(iommufd: OwnedFd) -> Result<Self, IoasError> {
        let id = uapi::allocate_ioas(iommufd.as_fd()).map_err(IoasError::Allocate)?;
        Ok(Self { iommufd, id })
    }

    /// Binds a function and puts it behind this map until what is returned is dropped. Once bound it is somebody's
    /// until its file is closed everywhere.
    pub fn attach(&self, cdev: Arc<Cdev>) -> Result<Attachment, IoasError> {
        let failed = |step| {
            let cdev = cdev.name.clone();
            move |source| IoasError::Kernel { cdev, step, source }
        };
        uapi::bind_iommufd(cdev.as_fd(), self.iommufd.as_fd())
            .map_err(|source| not_bound(&cdev.name, source))?;
        uapi::attach_ioas(cdev.as_fd(), self.id).map_err(failed("attach it to an address space"))?;
        Ok(Attachment(cdev))
    }

    /// The ranges of addresses that the functions behind it can use. Each that comes may narrow them.
    fn apertures(&self) -> io::Result<Vec<(u64, u64)>> {
        uapi::ioas_ranges(self.iommufd.as_fd(), self.id)
    }
}

/// A function can be bound once, and its group to one iommufd (Linux `drivers/vfio/device_cdev.c`,
/// `drivers/iommu/iommufd/device.c`).
fn not_bound(cdev: &str, source: io::Error) -> IoasError {
    let meaning = match source.raw_os_error() {
        Some(libc::EBUSY) => "another program has its IOMMU group, or another function of it",
        Some(libc::EINVAL) => {
            "another program has it, or its IOMMU does not keep its DMA coherent with the CPUs' caches"
        }
        Some(libc::EPERM) => {
            "another program has another function of its IOMMU group, or its interrupts are not isolated from those \
             of other devices"
        }
        _ => "refused",
    };
    IoasError::Bind { cdev: cdev.to_owned(), meaning, source }
}

impl IoasError {
    /// Whether somebody else has it for sure.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Bind { source, .. } if source.raw_os_error() == Some(libc::EBUSY))
    }
}

impl RamListener for Ioas {
    fn added(&self, guest_address: u64, host_address: u64, length: u64) -> io::Result<()> {
        iommu::check_reach(&self.apertures()?, guest_address, length)?;
        uapi::map_ioas(self.iommufd.as_fd(), self.id, guest_address, host_address, length)
            .map_err(iommu::not_mapped(guest_address, length))
    }

    fn removed(&self, guest_address: u64, length: u64) -> io::Result<()> {
        uapi::unmap_ioas(self.iommufd.as_fd(), self.id, guest_address, length)
    }
}

/// A function's place behind an address space. When dropped, the function reaches no memory any more.
#[derive(Debug)]
pub struct Attachment(Arc<Cdev>);

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(e) = uapi::detach_ioas(self.0.as_fd()) {
            tracing::error!("{} stays attached to guest memory: {e}", self.0.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn what_is_no_iommufd_is_refused() {
        let error = Ioas::new(file()).unwrap_err();
        assert!(matches!(error, IoasError::Allocate(_)), "{error}");
    }

    #[test]
    fn what_is_no_function_is_refused_by_name() {
        let ioas = Ioas { iommufd: file(), id: 1 };
        let error = ioas.attach(Arc::new(Cdev::new("/dev/vfio/devices/vfio3", file()))).unwrap_err();
        assert!(matches!(error, IoasError::Bind { .. }) && !error.is_in_use(), "{error}");
        assert_eq!(error.to_string(), "bind /dev/vfio/devices/vfio3 to /dev/iommu: refused");
    }

    #[test]
    fn what_the_kernel_says_is_kept_with_what_it_can_mean() {
        let error = |errno| not_bound("/dev/vfio/devices/vfio3", io::Error::from_raw_os_error(errno));
        let invalid = error(libc::EINVAL);
        assert!(!invalid.is_in_use(), "or it is not known");
        for word in ["another program has it", "coherent"] {
            assert!(invalid.to_string().contains(word), "{invalid}");
        }
        let said = std::error::Error::source(&invalid).unwrap();
        assert_eq!(said.downcast_ref::<io::Error>().unwrap().raw_os_error(), Some(libc::EINVAL));
        assert!(error(libc::EBUSY).is_in_use() && !error(libc::EPERM).is_in_use());
    }

    #[test]
    fn ram_is_not_taken_for_mapped_where_it_is_not() {
        let ioas = Ioas { iommufd: file(), id: 1 };
        assert!(ioas.added(0, 0x7000_0000, 0x1000).is_err());
        assert!(ioas.removed(0, 0x1000).is_err());
    }
}
