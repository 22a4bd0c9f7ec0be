//! Doorbells on ioeventfds (KVM api.rst 4.59): any write of any width to the address signals the event.

use std::io;
use std::sync::Arc;

use kiai_devices::platform::Doorbells;
use kvm_ioctls::IoEventAddress;
use kvm_ioctls::NoDatamatch;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

/// Doorbells of one VM.
pub(crate) struct KvmDoorbells(pub(crate) Arc<VmFd>);

impl Doorbells for KvmDoorbells {
    fn add(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.0
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }

    fn remove(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.0
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }
}
