#![expect(unsafe_code, reason = "a memory slot hands host memory to the guest")]
//! Memory slots (KVM api.rst 4.35): guest RAM, and host memory that devices place in the guest.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kiai_devices::platform::Mapper;
use kvm_bindings::KVM_MEM_READONLY;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;

/// The slots of one VM; the lowest free number is taken.
#[derive(Clone)]
pub(crate) struct Slots {
    vm: Arc<VmFd>,
    used: Arc<Mutex<BTreeMap<u32, kvm_userspace_memory_region>>>,
}

impl Slots {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, used: Arc::default() }
    }

    /// Maps a range. The host range must stay mapped until it is removed or the VM is gone: for RAM the
    /// machine holds both, for devices it is the contract of [`Mapper::map`].
    pub(crate) fn add(&self, guest: u64, host: u64, length: u64, read_only: bool) -> io::Result<()> {
        let mut used = self.used.lock();
        let end = guest.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
        if used.values().any(|s| guest < s.guest_phys_addr + s.memory_size && s.guest_phys_addr < end) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let slot = (0..).find(|slot| !used.contains_key(slot)).expect("fewer slots than u32 has numbers");
        let region = kvm_userspace_memory_region {
            slot,
            flags: if read_only { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: guest,
            memory_size: length,
            userspace_addr: host,
        };
        // SAFETY: the caller keeps the host range mapped while the slot exists (see above), and no other slot
        // overlaps it in the guest.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(errno)?;
        used.insert(slot, region);
        Ok(())
    }

    fn remove(&self, guest: u64, length: u64) -> io::Result<()> {
        let mut used = self.used.lock();
        let slot = used
            .iter()
            .find(|(_, s)| s.guest_phys_addr == guest && s.memory_size == length)
            .map(|(&slot, _)| slot)
            .ok_or(io::ErrorKind::NotFound)?;
        let region = kvm_userspace_memory_region { slot, memory_size: 0, ..Default::default() };
        // SAFETY: a size of zero deletes the slot and maps nothing.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(errno)?;
        used.remove(&slot);
        Ok(())
    }
}

impl Mapper for Slots {
    fn map(&self, guest_address: u64, host_address: u64, length: u64, read_only: bool) -> io::Result<()> {
        self.add(guest_address, host_address, length, read_only)
    }

    fn unmap(&self, guest_address: u64, length: u64) -> io::Result<()> {
        self.remove(guest_address, length)
    }
}

fn errno(e: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(e.errno())
}
