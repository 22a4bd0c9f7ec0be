//! The state in which a vCPU first enters the guest: CPUID, model-specific registers, and for vCPU 0 flat
//! 32-bit protected mode (PVH and the Linux 32-bit boot protocol ask for the same).

use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_bindings::Msrs;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_bindings::kvm_fpu;
use kvm_bindings::kvm_msr_entry;
use kvm_bindings::kvm_regs;
use kvm_bindings::kvm_segment;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuFd;
use kvm_ioctls::VmFd;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;

use crate::boot::Entry;
use crate::boot::Protocol;
use crate::kvm::KvmError;
use crate::layout;
use crate::vcpu::cpuid;
use crate::vcpu::cpuid::CpuFeatures;
use crate::vcpu::cpuid::Topology;
use crate::vcpu::state::VcpuState;

/// Why a vCPU could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// KVM refused a step.
    #[error("vCPU {id}")]
    Kvm {
        /// Which vCPU.
        id: u8,
        /// What was refused.
        #[source]
        source: KvmError,
    },
    /// It was saved on a processor that answers otherwise.
    #[error("vCPU {id} was saved on another kind of processor: CPUID leaf {leaf:#x} differs")]
    OtherCpu {
        /// Which vCPU.
        id: u8,
        /// The first leaf that differs.
        leaf: u32,
    },
    /// The descriptor table could not be written.
    #[error("write the boot descriptor table: {0}")]
    Memory(String),
}

/// IA32_MTRR_DEF_TYPE: enabled, write-back. Without it Linux takes all memory for uncached.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, (1 << 11) | 6);
/// IA32_MISC_ENABLE: fast string operations.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);

/// Makes vCPUs of one VM: those it boots with, and more while it runs.
pub(crate) struct Maker {
    vm: Arc<VmFd>,
    /// What KVM offers; each vCPU gets what the list lets through.
    host: Vec<kvm_cpuid_entry2>,
    /// How many there can be, which the guest's topology is made for.
    most: u8,
}

impl Maker {
    pub(crate) fn new(kvm: &Kvm, vm: Arc<VmFd>, most: u8) -> Result<Self, SetupError> {
        let host = cpuid::supported(kvm).map_err(|source| SetupError::Kvm { id: 0, source })?;
        Ok(Self { vm, host, most })
    }

    pub(super) fn most(&self) -> u8 {
        self.most
    }

    /// A vCPU that waits for its SIPI, unless it is the first.
    pub(super) fn make(&self, id: u8) -> Result<VcpuFd, SetupError> {
        self.create(id).map_err(|source| SetupError::Kvm { id, source })
    }

    /// The first vCPU, about to start at `entry`.
    pub(super) fn make_first(&self, memory: &GuestMemoryMmap, entry: Entry) -> Result<VcpuFd, SetupError> {
        write_gdt(memory)?;
        let vcpu = self.make(0)?;
        enter_at(&vcpu, entry).map_err(|source| SetupError::Kvm { id: 0, source })?;
        Ok(vcpu)
    }

    /// A vCPU that goes on where one was saved.
    pub(super) fn make_saved(&self, state: &VcpuState, elapsed: u64) -> Result<VcpuFd, SetupError> {
        let topology = state.topology;
        let id = topology.id;
        if let Some(leaf) = cpuid::difference(&state.cpuid, &self.cpuid(topology)) {
            return Err(SetupError::OtherCpu { id, leaf });
        }
        let error = |source| SetupError::Kvm { id, source };
        let vcpu = self.create_with(topology, &state.cpuid).map_err(error)?;
        state.put(&vcpu, elapsed).map_err(error)?;
        Ok(vcpu)
    }

    /// The place of vCPU `id` among those of this VM.
    pub(super) fn topology(&self, id: u8) -> Topology {
        Topology { id, count: self.most }
    }

    /// What a vCPU in this place answers.
    pub(super) fn cpuid(&self, topology: Topology) -> Vec<kvm_cpuid_entry2> {
        cpuid::guest_cpuid(&self.host, topology, CpuFeatures::default())
    }

    fn create_with(&self, topology: Topology, cpuid: &[kvm_cpuid_entry2]) -> Result<VcpuFd, KvmError> {
        let vcpu = self.vm.create_vcpu(u64::from(topology.id)).map_err(KvmError::at("create"))?;
        let cpuid = CpuId::from_entries(cpuid).map_err(|_| KvmError::Missing("so many CPUID leaves"))?;
        // CPUID comes before anything that depends on it (since Linux 6.13 KVM checks MSRs against it).
        vcpu.set_cpuid2(&cpuid).map_err(KvmError::at("set CPUID"))?;
        Ok(vcpu)
    }

    fn create(&self, id: u8) -> Result<VcpuFd, KvmError> {
        let topology = self.topology(id);
        let vcpu = self.create_with(topology, &self.cpuid(topology))?;
        for (index, data) in [MTRR_DEF_TYPE, MISC_ENABLE] {
            let msr = kvm_msr_entry { index, data, ..Default::default() };
            let msrs = Msrs::from_entries(&[msr]).expect("one entry is within the limit");
            // Best effort: a KVM without one of them (MISC_ENABLE is Intel's) sets zero of one.
            vcpu.set_msrs(&msrs).map_err(KvmError::at("set MSRs"))?;
        }
        let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
        vcpu.set_fpu(&fpu).map_err(KvmError::at("set FPU"))?;
        // KVM finds the target of an INIT and a SIPI in a map of local APICs that it makes anew when one changes. A
        // vCPU that comes to a running VM is not in it yet: being written back as it is counts as a change.
        let apic = vcpu.get_lapic().map_err(KvmError::at("get the local APIC"))?;
        vcpu.set_lapic(&apic).map_err(KvmError::at("set the local APIC"))?;
        Ok(vcpu)
    }
}

/// Flat segments at the selectors the Linux boot protocol names: code 0x10, data 0x18, and a task at 0x20.
fn segments() -> [kvm_segment; 3] {
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
    [
        kvm_segment { selector: 0x10, type_: 0xb, ..flat },
        kvm_segment { selector: 0x18, type_: 0x3, ..flat },
        kvm_segment { selector: 0x20, limit: 0x67, type_: 0xb, present: 1, ..Default::default() },
    ]
}

/// The descriptor of a segment (Intel SDM vol. 3 §3.4.5).
fn descriptor(s: &kvm_segment) -> u64 {
    let limit = u64::from(if s.g == 1 { s.limit >> 12 } else { s.limit });
    (limit & 0xffff)
        | ((s.base & 0xff_ffff) << 16)
        | (u64::from(s.type_) << 40)
        | (u64::from(s.s) << 44)
        | (u64::from(s.dpl) << 45)
        | (u64::from(s.present) << 47)
        | (((limit >> 16) & 0xf) << 48)
        | (u64::from(s.db) << 54)
        | (u64::from(s.g) << 55)
        | ((s.base >> 24) << 56)
}

fn write_gdt(memory: &GuestMemoryMmap) -> Result<(), SetupError> {
    let [code, data, task] = segments();
    let table = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task)];
    let bytes: Vec<u8> = table.iter().flat_map(|d| d.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(layout::GDT)).map_err(|e| SetupError::Memory(e.to_string()))
}

fn enter_at(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(KvmError::at("get special registers"))?;
    let [code, data, task] = segments();
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.cr0 = 0x11; // protection enabled, extension type
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs).map_err(KvmError::at("set special registers"))?;
    let (rbx, rsi) = match entry.protocol {
        Protocol::Pvh => (layout::START_INFO, 0),
        Protocol::Linux32 => (0, layout::START_INFO),
    };
    let regs = kvm_regs { rip: entry.address.0, rflags: 2, rbx, rsi, ..Default::default() };
    vcpu.set_regs(&regs).map_err(KvmError::at("set registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_usual_flat_ones() {
        let [code, data, task] = segments();
        assert_eq!(descriptor(&code), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&data), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&task), 0x0000_8b00_0000_0067);
    }
}
