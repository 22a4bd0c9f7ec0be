#![expect(unsafe_code, reason = "a memory slot hands a page of ours to a throw-away guest")]
//! Whether this machine's KVM can run a stock kernel: a few instructions of 64-bit kernel-mode code decide it.
//!
//! `/dev/kvm` opening is no proof. Some nested clouds offer a KVM without hardware virtualisation behind it
//! that gives up at the first FPU-state instruction, seconds into a boot; this finds out in a millisecond.

use kvm_bindings::kvm_regs;
use kvm_bindings::kvm_segment;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuExit;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;

use crate::kvm::KvmError;
use crate::memory;

/// Why no microVM can run here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no `/dev/kvm`.
    #[error("/dev/kvm does not exist: no virtualisation support, or the kvm module is not loaded")]
    NoDevice,
    /// It is there but may not be opened.
    #[error("/dev/kvm cannot be opened: permission denied")]
    Permission,
    /// KVM itself failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory for the probe.
    #[error("memory for the probe: {0}")]
    Memory(String),
    /// KVM is there but stops at ordinary kernel code.
    #[error("KVM is here but cannot run a stock kernel: 64-bit kernel code ended in {0}")]
    CannotRunKernels(String),
}

const CODE: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const AREA: u64 = 0x4000;
const SIZE: usize = 0x1_0000;

/// `fxsave64 [0x4000]; fxrstor64 [0x4000]; lock cmpxchg16b [0x4200]; hlt`. Software that interprets kernel code
/// has been seen to know the first two and not the third, which a kernel's allocator lives on.
const PROGRAM: &[u8] = &[
    0x48, 0x0f, 0xae, 0x04, 0x25, 0x00, 0x40, 0x00, 0x00, //
    0x48, 0x0f, 0xae, 0x0c, 0x25, 0x00, 0x40, 0x00, 0x00, //
    0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x00, 0x42, 0x00, 0x00, //
    0xf4,
];

/// Runs the probe. About a millisecond; leaves nothing behind.
pub fn probe() -> Result<(), ProbeError> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) if e.errno() == libc::ENOENT || e.errno() == libc::ENODEV => return Err(ProbeError::NoDevice),
        Err(e) if e.errno() == libc::EACCES || e.errno() == libc::EPERM => {
            return Err(ProbeError::Permission);
        }
        Err(e) => return Err(KvmError::Open(std::io::Error::from_raw_os_error(e.errno())).into()),
    };
    let vm = kvm.create_vm().map_err(KvmError::at("create VM"))?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), SIZE)])
        .map_err(|e| ProbeError::Memory(e.to_string()))?;
    for (slot, (guest_phys_addr, userspace_addr, memory_size)) in (0..).zip(memory::regions(&memory)) {
        let region =
            kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr };
        // SAFETY: `memory` outlives `vm` and `vcpu`, which are dropped before it (declared later).
        unsafe { vm.set_user_memory_region(region) }.map_err(KvmError::at("memory slot"))?;
    }
    let write = |bytes: &[u8], at| {
        memory.write_slice(bytes, GuestAddress(at)).map_err(|e| ProbeError::Memory(e.to_string()))
    };
    write(PROGRAM, CODE)?;
    // One identity-mapped GiB page: present, writable, accessed, dirty, large.
    write(&(PDPT | 0x23).to_le_bytes(), PML4)?;
    write(&0xe3u64.to_le_bytes(), PDPT)?;

    let mut vcpu = vm.create_vcpu(0).map_err(KvmError::at("create vCPU"))?;
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::at("get supported CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(KvmError::at("set CPUID"))?;
    let mut sregs = vcpu.get_sregs().map_err(KvmError::at("get special registers"))?;
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x08, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: 0x10, type_: 0x3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr3 = PML4;
    sregs.cr4 = 0x620; // PAE, OSFXSR, OSXMMEXCPT
    sregs.cr0 = 0x8000_0033; // PG, NE, ET, MP, PE
    sregs.efer = 0x500; // LME, LMA
    vcpu.set_sregs(&sregs).map_err(KvmError::at("set special registers"))?;
    let regs = kvm_regs { rip: CODE, rflags: 2, rsp: AREA, ..Default::default() };
    vcpu.set_regs(&regs).map_err(KvmError::at("set registers"))?;
    match vcpu.run() {
        // No in-kernel interrupt controller here, so HLT comes to us.
        Ok(VcpuExit::Hlt) => Ok(()),
        Ok(exit) => Err(ProbeError::CannotRunKernels(format!("{exit:?}"))),
        Err(e) => Err(ProbeError::CannotRunKernels(format!("error {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What is right depends on the machine; other evidence than the probe's own tells it.
    #[test]
    fn the_probe_agrees_with_what_else_is_known_of_the_machine() {
        let found = probe();
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        if !Path::new("/dev/kvm").exists() {
            assert!(matches!(found, Err(ProbeError::NoDevice)), "{found:?}");
        } else if loaded("kvm_intel") || loaded("kvm_amd") {
            assert!(matches!(found, Ok(()) | Err(ProbeError::Permission)), "{found:?}");
        } else if loaded("kvm_pvm") {
            // It interprets the guest's kernel.
            let Err(ProbeError::CannotRunKernels(reason)) = found else { panic!("{found:?}") };
            assert!(!reason.is_empty());
        } else {
            assert!(matches!(found, Ok(()) | Err(ProbeError::CannotRunKernels(_))), "{found:?}");
        }
    }
}
