//! Which leaves a guest has, and what of them is held back. What is not here is not in the guest.

use self::Treatment::If;
use self::Treatment::Made;
use self::Treatment::Pass;
use self::Treatment::Without;
use super::CpuFeatures;
use super::Vendor;

/// The local APIC's timer fires at a value of the time stamp counter (leaf 1, ECX).
pub(super) const TSC_DEADLINE: u32 = 1 << 24;

/// What becomes of a leaf that KVM reports.
pub(super) enum Treatment {
    /// It passes, but for what the topology says.
    Pass,
    /// The same, without these bits of EAX, EBX, ECX and EDX.
    Without(fn(CpuFeatures) -> [u32; 4]),
    /// It passes if the features ask for it and is zero otherwise.
    If(fn(CpuFeatures) -> bool),
    /// It consists of the topology, and is made from that.
    Made,
}

/// What becomes of a leaf of the host; None keeps it from the guest.
pub(super) fn treatment(vendor: Vendor, leaf: u32, subleaf: u32) -> Option<Treatment> {
    let treatment = match (leaf, subleaf) {
        (0x0, _) => Pass,
        (0x1, _) => Without(version),
        // Thermal: KVM says that the APIC's timer does not stop, and nothing else.
        (0x6, _) => Pass,
        (0x7, 0) => Without(structured),
        (0x7, 1) => Without(|_| [AMX_FP16, 0, 0, AMX_COMPLEX]),
        // Further controls of speculation.
        (0x7, 2) => Pass,
        (0xb, _) => Made,
        (0xd, 0) => Without(|_| [XTILE, 0, 0, 0]),
        (0xd, 1) => Without(|_| [XFD, 0, 0, 0]),
        (0xd, 2..=16 | 19..=62) => Pass,
        // What KVM does for guests: its clock, steal time, wakes and flushes by hypercall.
        (0x4000_0000 | 0x4000_0001, _) => Pass,
        (0x8000_0000 | 0x8000_0002..=0x8000_0004, _) => Pass,
        (0x8000_0001, _) => Without(extended),
        // An invariant time stamp counter; the rest is the host's power management.
        (0x8000_0007, _) => Without(|_| [!0, !0, !0, !INVARIANT_TSC]),
        // Address widths, and AMD's controls of speculation.
        (0x8000_0008, _) => Pass,
        _ => return of_vendor(vendor, leaf),
    };
    Some(treatment)
}

fn of_vendor(vendor: Vendor, leaf: u32) -> Option<Treatment> {
    let treatment = match (vendor, leaf) {
        // Caches; the second way to describe them says who shares them.
        (Vendor::Intel, 0x2 | 0x4 | 0x8000_0006) => Pass,
        (Vendor::Intel, 0xa | 0x23) => If(|features| features.pmu),
        (Vendor::Intel, 0x1f) => Made,
        // AVX10: which version.
        (Vendor::Intel, 0x24) => Pass,

        // Caches and TLBs, and how wide the vector units are.
        (Vendor::Amd, 0x8000_0005 | 0x8000_0006 | 0x8000_0019 | 0x8000_001a) => Pass,
        (Vendor::Amd, 0x8000_000a) => If(|features| features.nested),
        (Vendor::Amd, 0x8000_001d | 0x8000_001e) => Pass,
        // Flaws the processor has not got, and what its microcode clears.
        (Vendor::Amd, 0x8000_0021) => Pass,
        (Vendor::Amd, 0x8000_0022) => If(|features| features.pmu),
        (Vendor::Amd, 0x8000_0026) => Made,
        _ => return None,
    };
    Some(treatment)
}

// Matrix tiles need a permission that this process does not ask for.
const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
const AMX_FP16: u32 = 1 << 21;
const AMX_COMPLEX: u32 = 1 << 8;
const XTILE: u32 = 1 << 17 | 1 << 18;
const XFD: u32 = 1 << 4;
const INVARIANT_TSC: u32 = 1 << 8;
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
/// Which counters there are is in an MSR (PERF_CAPABILITIES).
const PDCM: u32 = 1 << 15;
/// AMD's counters of a core, of the north bridge and of the last cache.
const PERF_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

fn version(features: CpuFeatures) -> [u32; 4] {
    // Debug stores, MONITOR, measured launch, power management: the host's. OSXSAVE is what the guest turns on.
    let mut ecx = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 27;
    if !features.nested {
        ecx |= VMX;
    }
    if !features.pmu {
        ecx |= PDCM;
    }
    [0, 0, ecx, 1 << 21 | 1 << 22 | 1 << 29 | 1 << 31]
}

fn structured(features: CpuFeatures) -> [u32; 4] {
    // SGX, resource monitoring and allocation, processor trace.
    let ebx = 1 << 2 | 1 << 12 | 1 << 15 | 1 << 25;
    let sgx_launch = 1 << 30;
    let branch_records = if features.pmu { 0 } else { 1 << 19 };
    [0, ebx, sgx_launch, AMX | branch_records]
}

fn extended(features: CpuFeatures) -> [u32; 4] {
    // Extended APIC space, IBS, SKINIT, watchdog, lightweight profiling, the node's number by MSR, MWAITX.
    let mut ecx = 1 << 3 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 19 | 1 << 29;
    if !features.nested {
        ecx |= SVM;
    }
    if !features.pmu {
        ecx |= PERF_COUNTERS;
    }
    [0, 0, ecx, 0]
}
