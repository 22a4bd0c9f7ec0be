//! Can this machine's KVM run a stock 64-bit kernel? Tries it on the instructions that tell.
//!
//! That `/dev/kvm` opens says little: there are nested clouds whose KVM has no hardware behind it and interprets guest
//! kernel code. They answer every ioctl and stop a stock kernel at its first FPU-state instruction or 16-byte exchange.
//! So: one vCPU in long mode at privilege level 0 that executes one of each and `hlt`, and a look at why it stopped (KVM
//! api.rst §5).
#![expect(unsafe_code, reason = "handing memory to KVM is unsafe")]

use std::ptr;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Why this machine cannot run microVMs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// No device, no permission, or no such hardware.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(kvm_ioctls::Error),
    /// A request that every KVM serves was refused.
    #[error("KVM refuses to {step}: {source}")]
    Refused { step: &'static str, source: kvm_ioctls::Error },
    /// Memory for the probe could not be had.
    #[error("no memory for the probe: {0}")]
    Memory(rustix::io::Errno),
    /// The instructions did not run to their end.
    #[error("KVM cannot run a stock kernel: 64-bit kernel code ends with {0}")]
    Stopped(String),
}

const MEMORY_BYTES: usize = 0x8000;
/// One page each: page tables from level 4 down to one 2 MiB page, the code, and where `fxsave64` writes.
const LEVEL_4: u64 = 0x1000;
const LEVEL_3: u64 = 0x2000;
const LEVEL_2: u64 = 0x3000;
const CODE: u64 = 0x4000;
const DATA: u64 = 0x5000;

/// `fxsave64 (%rdi)`, `lock cmpxchg16b 0x200(%rdi)`, `hlt`: KVM's instruction emulator knows neither of the first two.
const INSTRUCTIONS: [u8; 14] =
    [0x48, 0x0f, 0xae, 0x07, 0xf0, 0x48, 0x0f, 0xc7, 0x8f, 0x00, 0x02, 0x00, 0x00, 0xf4];

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const CR0_PROTECTED_PAGED: u64 = 1 << 31 | 1 << 5 | 1 << 1 | 1;
const CR4_PAE_FXSR: u64 = 1 << 5 | 1 << 9;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;

/// Runs the instructions. Takes milliseconds and leaves nothing behind.
pub(crate) fn probe() -> Result<(), Unusable> {
    let refused = |step| move |source| Unusable::Refused { step, source };
    let kvm = Kvm::new().map_err(Unusable::Open)?;
    let vm = kvm.create_vm().map_err(refused("create a VM"))?;
    let memory = Memory::new()?;
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: memory.0 as u64,
        ..Default::default()
    };
    // SAFETY: the mapping is of this size, and `memory` was made before the vCPU and is dropped after it.
    unsafe { vm.set_user_memory_region(region) }.map_err(refused("map memory"))?;

    let mut vcpu = vm.create_vcpu(0).map_err(refused("create a vCPU"))?;
    let cpuid =
        kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(refused("tell its CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(refused("set CPUID"))?;
    enter_long_mode(&vcpu).map_err(refused("set registers"))?;
    match vcpu.run() {
        Ok(VcpuExit::Hlt) => Ok(()),
        Ok(exit) => Err(Unusable::Stopped(format!("{exit:?}"))),
        Err(error) => Err(Unusable::Stopped(error.to_string())),
    }
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: 0x10, type_: 0b0011, db: 1, ..flat };
    let mut registers = vcpu.get_sregs()?;
    registers.cs = kvm_segment { selector: 0x08, type_: 0b1011, l: 1, ..flat };
    (registers.ds, registers.es, registers.ss) = (data, data, data);
    registers.cr3 = LEVEL_4;
    registers.cr0 = CR0_PROTECTED_PAGED;
    registers.cr4 = CR4_PAE_FXSR;
    registers.efer = EFER_LONG_MODE;
    vcpu.set_sregs(&registers)?;
    vcpu.set_regs(&kvm_regs { rip: CODE, rdi: DATA, rflags: 1 << 1, ..Default::default() })
}

/// The guest's memory, filled: page tables that map the first 2 MiB to themselves, and the code.
struct Memory(*mut u8);

impl Memory {
    fn new() -> Result<Self, Unusable> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), MEMORY_BYTES, access, MapFlags::PRIVATE) }
            .map_err(Unusable::Memory)?;
        let memory = Self(base.cast());
        memory.write(LEVEL_4, &(LEVEL_3 | PRESENT_WRITABLE).to_le_bytes());
        memory.write(LEVEL_3, &(LEVEL_2 | PRESENT_WRITABLE).to_le_bytes());
        memory.write(LEVEL_2, &(LARGE_PAGE | PRESENT_WRITABLE).to_le_bytes());
        memory.write(CODE, &INSTRUCTIONS);
        Ok(memory)
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let offset = address as usize;
        assert!(offset + bytes.len() <= MEMORY_BYTES, "the constants above lie within the mapping");
        // SAFETY: the range was just checked to lie within the mapping, which nothing else points into.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(offset), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is of this size and ours; the vCPU that could reach it is gone.
        // Unmapping a whole mapping of our own does not fail.
        let _ = unsafe { munmap(self.0.cast(), MEMORY_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it finds depends on the machine: the lab's KVM runs the code, and `KIAI_IN_LAB` says that this is the lab.
    #[test]
    fn a_kvm_that_works_is_found_to_work() {
        let found = probe();
        println!("{found:?}");
        assert!(std::env::var_os("KIAI_IN_LAB").is_none() || found.is_ok(), "{found:?}");
    }
}
