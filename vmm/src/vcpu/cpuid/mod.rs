//! CPUID as a guest sees it: what is on a list of its processor's vendor, and the topology of the microVM.
//!
//! KVM says what the host can give (`KVM_GET_SUPPORTED_CPUID`). Of that a guest gets the leaves that `list` names and no
//! others, so that a newer host brings nothing in that nobody has looked at. Feature bits are the host's but for those
//! this VMM cannot stand by. The bits by which a guest finds out about flaws of the processor, and what the host's
//! microcode does against them, pass through whole: a guest can protect itself like a kernel on the metal.
//!
//! Leaves are those of the Intel SDM vol. 2A (CPUID) and the AMD APM vol. 3, appendix E.

mod list;
#[cfg(test)]
mod tests;
mod topology;

use core::arch::x86_64::__cpuid;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Cap;
use kvm_ioctls::Kvm;

use self::list::Treatment;
use crate::kvm::KvmError;

pub(crate) use topology::Topology;

/// What a processor has and a guest gets only if it is told so.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuFeatures {
    /// Performance counters. They count what the host's other guests do to the caches, too.
    pub(crate) pmu: bool,
    /// VMX or SVM: microVMs inside the microVM.
    pub(crate) nested: bool,
}

/// Who made the processor, as far as leaves differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vendor {
    /// AMD and Hygon.
    Amd,
    /// Intel, and whoever else follows its manual.
    Intel,
}

/// What this host can give a vCPU: what KVM reports, the timer it reports elsewhere, and the processor's name.
pub(crate) fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::at("get supported CPUID"))?;
    let mut entries = cpuid.as_slice().to_vec();
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in &mut entries {
        match entry.function {
            0x1 if deadline_timer => entry.ecx |= list::TSC_DEADLINE,
            // KVM leaves the name blank, and the processor tells it to anybody.
            0x8000_0002..=0x8000_0004 => {
                let name = __cpuid(entry.function);
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (name.eax, name.ebx, name.ecx, name.edx);
            }
            _ => {}
        }
    }
    Ok(entries)
}

/// What one vCPU answers, of what the host can give: by leaf and subleaf, each once.
pub(crate) fn guest_cpuid(
    host: &[kvm_cpuid_entry2],
    topology: Topology,
    features: CpuFeatures,
) -> Vec<kvm_cpuid_entry2> {
    let vendor = vendor(host);
    let mut guest: Vec<kvm_cpuid_entry2> =
        host.iter().filter_map(|entry| treat(*entry, vendor, topology, features)).collect();
    guest.extend(topology.levels(host, vendor));
    guest.sort_by_key(|entry| (entry.function, entry.index));
    guest.dedup_by_key(|entry| (entry.function, entry.index));
    topology::offer_caches(&mut guest);
    end_ranges(&mut guest);
    guest
}

/// The first leaf that two processors answer differently.
pub(crate) fn difference(one: &[kvm_cpuid_entry2], other: &[kvm_cpuid_entry2]) -> Option<u32> {
    let unequal = one.iter().zip(other).find(|(one, other)| one != other).map(|(one, _)| one.function);
    let longer = if one.len() > other.len() { one } else { other };
    unequal.or_else(|| longer.get(one.len().min(other.len())).map(|entry| entry.function))
}

fn vendor(host: &[kvm_cpuid_entry2]) -> Vendor {
    let is = |name: &[u8; 12]| {
        let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        host.iter()
            .any(|leaf| leaf.function == 0 && (leaf.ebx, leaf.edx, leaf.ecx) == (word(0), word(4), word(8)))
    };
    if is(b"AuthenticAMD") || is(b"HygonGenuine") { Vendor::Amd } else { Vendor::Intel }
}

fn treat(
    mut entry: kvm_cpuid_entry2,
    vendor: Vendor,
    topology: Topology,
    features: CpuFeatures,
) -> Option<kvm_cpuid_entry2> {
    match list::treatment(vendor, entry.function, entry.index)? {
        Treatment::Pass => {}
        Treatment::Without(bits) => {
            let [eax, ebx, ecx, edx] = bits(features);
            entry.eax &= !eax;
            entry.ebx &= !ebx;
            entry.ecx &= !ecx;
            entry.edx &= !edx;
        }
        Treatment::If(wanted) => {
            if !wanted(features) {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
        }
        Treatment::Made => return None,
    }
    topology.place(&mut entry, vendor);
    Some(entry)
}

/// Makes the leaves that say where their range ends say where it does: a guest that asks beyond it would be given the
/// last one.
fn end_ranges(guest: &mut [kvm_cpuid_entry2]) {
    for first in [0, 0x8000_0000] {
        let last = guest.iter().map(|entry| entry.function).filter(|leaf| leaf & 0xc000_0000 == first).max();
        let start = guest.iter_mut().find(|entry| entry.function == first);
        if let (Some(last), Some(start)) = (last, start) {
            start.eax = last;
        }
    }
    let structured = guest.iter().filter(|entry| entry.function == 0x7).map(|entry| entry.index).max();
    let start = guest.iter_mut().find(|entry| (entry.function, entry.index) == (0x7, 0));
    if let (Some(last), Some(start)) = (structured, start) {
        start.eax = last;
    }
}
