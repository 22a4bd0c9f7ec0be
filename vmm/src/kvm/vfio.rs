//! The KVM-VFIO device (Linux `virt/kvm/devices/vfio.rst`): KVM is told of every file through which the guest has
//! functions, a group's or a function's own, so that it treats memory as devices do that do not snoop caches.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::sync::Arc;

use kvm_bindings::KVM_DEV_VFIO_FILE;
use kvm_bindings::KVM_DEV_VFIO_FILE_ADD;
use kvm_bindings::KVM_DEV_VFIO_FILE_DEL;
use kvm_bindings::kvm_create_device;
use kvm_bindings::kvm_device_attr;
use kvm_bindings::kvm_device_type_KVM_DEV_TYPE_VFIO;
use kvm_ioctls::DeviceFd;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;

/// The device of one VM; made when the first file comes.
pub(crate) struct KvmVfio {
    vm: Arc<VmFd>,
    device: Mutex<Option<DeviceFd>>,
}

impl KvmVfio {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, device: Mutex::new(None) }
    }

    /// The guest has a function through this file. A function's own must not be bound yet.
    pub(crate) fn add(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let mut device = self.device.lock();
        if device.is_none() {
            let mut request = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
            *device = Some(self.vm.create_device(&mut request).map_err(errno)?);
        }
        set(device.as_ref(), KVM_DEV_VFIO_FILE_ADD, file)
    }

    /// It has none any more. Until then KVM keeps the file open.
    pub(crate) fn remove(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        set(self.device.lock().as_ref(), KVM_DEV_VFIO_FILE_DEL, file)
    }
}

fn set(device: Option<&DeviceFd>, attribute: u32, file: BorrowedFd<'_>) -> io::Result<()> {
    let device = device.ok_or(io::ErrorKind::NotFound)?;
    let fd: RawFd = file.as_raw_fd();
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_DEV_VFIO_FILE,
        attr: attribute.into(),
        addr: &raw const fd as u64,
    };
    device.set_device_attr(&attribute).map_err(errno)
}

fn errno(e: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno())
}
