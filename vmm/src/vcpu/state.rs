#![expect(unsafe_code, reason = "hands KVM the extended state of a processor")]
//! All that a vCPU is between two instructions, as a plain value, and the order in which KVM takes it back.

use std::os::fd::AsRawFd;

use kvm_bindings::KVM_VCPU_TSC_CTRL;
use kvm_bindings::KVM_VCPU_TSC_OFFSET;
use kvm_bindings::Msrs;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_bindings::kvm_debugregs;
use kvm_bindings::kvm_device_attr;
use kvm_bindings::kvm_lapic_state;
use kvm_bindings::kvm_mp_state;
use kvm_bindings::kvm_msr_entry;
use kvm_bindings::kvm_regs;
use kvm_bindings::kvm_sregs;
use kvm_bindings::kvm_vcpu_events;
use kvm_bindings::kvm_xcrs;
use kvm_bindings::kvm_xsave;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuFd;
use serde::Deserialize;
use serde::Serialize;

use super::Topology;
use crate::kvm::KvmError;

/// `IA32_TSC_DEADLINE`: means something only once the local APIC's timer and the counter are as they were.
const TSC_DEADLINE: u32 = 0x6e0;
/// `IA32_TIME_STAMP_COUNTER`. Written as a register it would be taken for an attempt to have it agree with others, and
/// set to what KVM thinks is meant; it is set by its offset.
const TSC: u32 = 0x10;
/// KVM_SET_DEVICE_ATTR and KVM_GET_DEVICE_ATTR (KVM api.rst 4.80).
const SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;
/// Entries of one KVM_GET_MSRS or KVM_SET_MSRS (`MAX_IO_MSRS` of KVM is 256).
const MSRS_AT_ONCE: usize = 128;

/// A vCPU that is not in the guest.
#[derive(Serialize, Deserialize)]
pub(crate) struct VcpuState {
    pub(super) topology: Topology,
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    /// From the host's counter to this vCPU's, modulo 2^64.
    tsc_offset: u64,
    mp: kvm_mp_state,
    registers: kvm_regs,
    special: kvm_sregs,
    extended: kvm_xsave,
    control: kvm_xcrs,
    debug: kvm_debugregs,
    local_apic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

/// What a vCPU knows but for its CPUID, which KVM changes as the guest runs.
pub(crate) struct Bare(VcpuState);

/// Every model-specific register that this KVM saves.
pub(crate) fn saved_msrs() -> Result<Vec<u32>, KvmError> {
    let kvm = Kvm::new().map_err(|e| KvmError::Open(std::io::Error::from_raw_os_error(e.errno())))?;
    let list = kvm.get_msr_index_list().map_err(KvmError::at("list of MSRs"))?;
    Ok(list.as_slice().to_vec())
}

impl Bare {
    /// Asks KVM, in the order in which one answer does not change the next: what the local APIC has waiting is taken
    /// in by the question for the multiprocessor state.
    pub(super) fn of(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, KvmError> {
        let mp = vcpu.get_mp_state().map_err(KvmError::at("get the multiprocessor state"))?;
        Ok(Self(VcpuState {
            topology: Topology::default(),
            cpuid: Vec::new(),
            tsc_offset: tsc_offset(vcpu)?,
            mp,
            registers: vcpu.get_regs().map_err(KvmError::at("get registers"))?,
            special: vcpu.get_sregs().map_err(KvmError::at("get special registers"))?,
            extended: vcpu.get_xsave().map_err(KvmError::at("get the extended state"))?,
            control: vcpu.get_xcrs().map_err(KvmError::at("get extended control registers"))?,
            debug: vcpu.get_debug_regs().map_err(KvmError::at("get debug registers"))?,
            local_apic: vcpu.get_lapic().map_err(KvmError::at("get the local APIC"))?,
            tsc_khz: vcpu.get_tsc_khz().map_err(KvmError::at("get the counter's frequency"))?,
            msrs: get_msrs(vcpu, msrs)?,
            events: vcpu.get_vcpu_events().map_err(KvmError::at("get events"))?,
        }))
    }

    pub(super) fn with(self, topology: Topology, cpuid: Vec<kvm_cpuid_entry2>) -> VcpuState {
        VcpuState { topology, cpuid, ..self.0 }
    }
}

impl VcpuState {
    /// Gives all of it to a new vCPU that has its CPUID. `elapsed` is by how much the host's counter is ahead of where it
    /// was at the save.
    pub(super) fn put(&self, vcpu: &VcpuFd, elapsed: u64) -> Result<(), KvmError> {
        let khz = vcpu.get_tsc_khz().map_err(KvmError::at("get the counter's frequency"))?;
        if khz != self.tsc_khz {
            vcpu.set_tsc_khz(self.tsc_khz).map_err(KvmError::at("set the counter's frequency"))?;
        }
        set_tsc_offset(vcpu, self.tsc_offset.wrapping_sub(elapsed))?;
        vcpu.set_mp_state(self.mp).map_err(KvmError::at("set the multiprocessor state"))?;
        vcpu.set_regs(&self.registers).map_err(KvmError::at("set registers"))?;
        vcpu.set_sregs(&self.special).map_err(KvmError::at("set special registers"))?;
        // SAFETY: state larger than this structure needs a permission of the process that nobody has asked for.
        unsafe { vcpu.set_xsave(&self.extended) }.map_err(KvmError::at("set the extended state"))?;
        vcpu.set_xcrs(&self.control).map_err(KvmError::at("set extended control registers"))?;
        vcpu.set_debug_regs(&self.debug).map_err(KvmError::at("set debug registers"))?;
        vcpu.set_lapic(&self.local_apic).map_err(KvmError::at("set the local APIC"))?;
        set_msrs(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events).map_err(KvmError::at("set events"))
    }
}

/// The host's time stamp counter.
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: x86-64 has the instruction, and Linux lets everybody use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, KvmError> {
    let mut offset = 0;
    tsc_offset_attribute(vcpu, GET_DEVICE_ATTR, &mut offset)
        .map_err(KvmError::at("get the counter's offset"))?;
    Ok(offset)
}

fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), KvmError> {
    tsc_offset_attribute(vcpu, SET_DEVICE_ATTR, &mut offset).map_err(KvmError::at("set the counter's offset"))
}

/// KVM_VCPU_TSC_OFFSET (KVM devices/vcpu.rst 4.1), which Linux has since 5.16.
fn tsc_offset_attribute(
    vcpu: &VcpuFd,
    request: libc::c_ulong,
    offset: &mut u64,
) -> Result<(), kvm_ioctls::Error> {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_mut(offset) as u64,
        ..Default::default()
    };
    // SAFETY: both requests take this structure, whose address is of eight bytes that may be read and written.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), request, &raw const attribute) };
    if result == 0 { Ok(()) } else { Err(kvm_ioctls::Error::last()) }
}

/// Those of `indices` that the vCPU has.
fn get_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, KvmError> {
    let mut found = Vec::with_capacity(indices.len());
    for mut piece in indices.chunks(MSRS_AT_ONCE) {
        while !piece.is_empty() {
            let mut msrs = entries(piece.iter().map(|&index| (index, 0)));
            let count = vcpu.get_msrs(&mut msrs).map_err(KvmError::at("get MSRs"))?;
            found.extend(msrs.as_slice()[..count].iter().map(|entry| (entry.index, entry.data)));
            // It stops at one that this vCPU has not got.
            piece = piece.get(count + 1..).unwrap_or_default();
        }
    }
    Ok(found)
}

/// Sets what is not so already: some can be read and not written, which is no harm as long as they agree.
fn set_msrs(vcpu: &VcpuFd, wanted: &[(u32, u64)]) -> Result<(), KvmError> {
    let indices: Vec<u32> = wanted.iter().map(|&(index, _)| index).collect();
    let present = get_msrs(vcpu, &indices)?;
    let differs = |entry: &&(u32, u64)| !present.contains(entry);
    let (last, first): (Vec<_>, Vec<_>) = wanted
        .iter()
        .filter(differs)
        .filter(|entry| entry.0 != TSC)
        .copied()
        .partition(|&(index, _)| index == TSC_DEADLINE);
    for piece in first.chunks(MSRS_AT_ONCE).chain(last.chunks(MSRS_AT_ONCE)) {
        let set = vcpu.set_msrs(&entries(piece.iter().copied())).map_err(KvmError::at("set MSRs"))?;
        if let Some(&(index, value)) = piece.get(set) {
            return Err(KvmError::Msr { index, value });
        }
    }
    Ok(())
}

fn entries(msrs: impl Iterator<Item = (u32, u64)>) -> Msrs {
    let entries: Vec<_> =
        msrs.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    Msrs::from_entries(&entries).expect("no more than KVM takes at once")
}
