//! What becomes of a recorded AMD Milan and of an Intel processor with everything; and what holds for any.

use kvm_bindings::kvm_cpuid_entry2;
use proptest::prelude::*;

use super::CpuFeatures;
use super::Topology;
use super::guest_cpuid;

const MILAN: &str = include_str!("milan.txt");
const INTEL: &str = include_str!("intel.txt");
const NOTHING: CpuFeatures = CpuFeatures { pmu: false, nested: false };
const EVERYTHING: CpuFeatures = CpuFeatures { pmu: true, nested: true };
const SECOND_OF_THREE: Topology = Topology { id: 1, count: 3 };

/// Every leaf that a guest may have, whoever made the processor.
const LISTED: &[u32] = &[
    0x0,
    0x1,
    0x2,
    0x4,
    0x6,
    0x7,
    0xa,
    0xb,
    0xd,
    0x1f,
    0x23,
    0x24,
    0x4000_0000,
    0x4000_0001,
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_000a,
    0x8000_0019,
    0x8000_001a,
    0x8000_001d,
    0x8000_001e,
    0x8000_0021,
    0x8000_0022,
    0x8000_0026,
];

fn entries(text: &str) -> Vec<kvm_cpuid_entry2> {
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.map(|line| {
        let numbers: Vec<u32> =
            line.split_whitespace().map(|word| u32::from_str_radix(word, 16).unwrap()).collect();
        let [function, index, flags, eax, ebx, ecx, edx] = numbers[..] else { panic!("{line}") };
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    })
    .collect()
}

fn leaf(cpuid: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let entry = cpuid.iter().find(|entry| (entry.function, entry.index) == (function, index));
    let entry = entry.unwrap_or_else(|| panic!("leaf {function:#x}.{index}"));
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

fn functions(cpuid: &[kvm_cpuid_entry2]) -> Vec<u32> {
    let mut functions: Vec<u32> = cpuid.iter().map(|entry| entry.function).collect();
    functions.dedup();
    functions
}

#[test]
fn a_guest_on_milan_has_the_listed_leaves() {
    let guest = guest_cpuid(&entries(MILAN), SECOND_OF_THREE, NOTHING);
    assert_eq!(
        functions(&guest),
        [
            0x0,
            0x1,
            0x6,
            0x7,
            0xb,
            0xd,
            0x4000_0000,
            0x4000_0001,
            0x8000_0000,
            0x8000_0001,
            0x8000_0002,
            0x8000_0003,
            0x8000_0004,
            0x8000_0005,
            0x8000_0006,
            0x8000_0007,
            0x8000_0008,
            0x8000_000a,
            0x8000_0019,
            0x8000_001a,
            0x8000_001d,
            0x8000_001e,
            0x8000_0021,
        ]
    );
    assert_eq!(leaf(&guest, 0x0, 0), [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
    assert_eq!(leaf(&guest, 0x8000_0000, 0)[0], 0x8000_0021);
}

#[test]
fn a_guest_on_intel_has_the_listed_leaves() {
    let guest = guest_cpuid(&entries(INTEL), SECOND_OF_THREE, NOTHING);
    assert_eq!(
        functions(&guest),
        [
            0x0,
            0x1,
            0x2,
            0x4,
            0x6,
            0x7,
            0xa,
            0xb,
            0xd,
            0x1f,
            0x23,
            0x24,
            0x4000_0000,
            0x4000_0001,
            0x8000_0000,
            0x8000_0001,
            0x8000_0002,
            0x8000_0003,
            0x8000_0004,
            0x8000_0006,
            0x8000_0007,
            0x8000_0008,
        ]
    );
    assert_eq!(leaf(&guest, 0x0, 0)[0], 0x24);
}

#[test]
fn milan_is_one_socket_of_single_threaded_cores() {
    let guest = guest_cpuid(&entries(MILAN), SECOND_OF_THREE, NOTHING);
    let [_, ebx, ecx, edx] = leaf(&guest, 0x1, 0);
    assert_eq!(ebx, 0x0104_0800, "APIC id 1 of 4 ids");
    assert_eq!((ecx >> 31, edx >> 28 & 1), (1, 1), "a hypervisor; several processors");
    assert_eq!(leaf(&guest, 0xb, 0), [0, 1, 0x100, 1], "one thread in a core");
    assert_eq!(leaf(&guest, 0xb, 1), [2, 3, 0x201, 1], "three cores; two bits of APIC id");
    assert_eq!(leaf(&guest, 0x8000_0001, 0)[2] & (1 << 1 | 1 << 22), 1 << 1 | 1 << 22);
    assert_eq!(leaf(&guest, 0x8000_0008, 0)[2], 0x2002);
    assert_eq!(leaf(&guest, 0x8000_001e, 0), [1, 1, 0, 0]);
    let sharers = |index| leaf(&guest, 0x8000_001d, index)[0] >> 14 & 0xfff;
    assert_eq!([0, 1, 2, 3].map(sharers), [0, 0, 0, 3], "the third level is everybody's");
    assert_eq!(leaf(&guest, 0x8000_001d, 4), [0; 4]);
}

#[test]
fn intel_is_one_socket_of_single_threaded_cores() {
    let guest = guest_cpuid(&entries(INTEL), SECOND_OF_THREE, NOTHING);
    assert_eq!(leaf(&guest, 0x1, 0)[1], 0x0104_0800);
    for function in [0xb, 0x1f] {
        assert_eq!(leaf(&guest, function, 0), [0, 1, 0x100, 1]);
        assert_eq!(leaf(&guest, function, 1), [2, 3, 0x201, 1]);
    }
    let place = |index| leaf(&guest, 0x4, index)[0] >> 14;
    assert_eq!([0, 1, 2, 3].map(place), [0x3000, 0x3000, 0x3000, 0x3003], "four ids in the package");
    assert_eq!(leaf(&guest, 0x4, 4), [0; 4]);
}

#[test]
fn a_single_vcpu_has_no_siblings() {
    let alone = Topology { id: 0, count: 1 };
    let guest = guest_cpuid(&entries(MILAN), alone, NOTHING);
    assert_eq!(leaf(&guest, 0x1, 0)[1] >> 16, 1);
    assert_eq!(leaf(&guest, 0x1, 0)[3] >> 28 & 1, 0);
    assert_eq!(leaf(&guest, 0xb, 1), [0, 1, 0x201, 0]);
    assert_eq!(leaf(&guest, 0x8000_0001, 0)[2] & 1 << 1, 0);
    assert_eq!(leaf(&guest, 0x8000_0008, 0)[2], 0);
    assert_eq!(leaf(&guest, 0x8000_001d, 3)[0] >> 14 & 0xfff, 0);
}

#[test]
fn amd_levels_are_made_where_the_host_has_them() {
    let mut host = entries(MILAN);
    host.push(kvm_cpuid_entry2 { function: 0x8000_0026, flags: 1, ..Default::default() });
    let guest = guest_cpuid(&host, SECOND_OF_THREE, NOTHING);
    assert_eq!(leaf(&guest, 0x8000_0026, 0), [0, 1, 0x100, 1]);
    assert_eq!(leaf(&guest, 0x8000_0026, 1), [2, 3, 0x201, 1]);
    assert_eq!(leaf(&guest, 0x8000_0026, 2), [2, 3, 0x402, 1]);
    assert_eq!(leaf(&guest, 0x8000_0000, 0)[0], 0x8000_0026);
}

#[test]
fn nested_virtualisation_and_counters_come_when_asked_for() {
    let amd = entries(MILAN);
    let intel = entries(INTEL);
    let held_back = guest_cpuid(&amd, SECOND_OF_THREE, NOTHING);
    let given = guest_cpuid(&amd, SECOND_OF_THREE, EVERYTHING);
    assert_eq!([&held_back, &given].map(|guest| leaf(guest, 0x8000_0001, 0)[2] >> 2 & 1), [0, 1]);
    assert_eq!(leaf(&held_back, 0x8000_000a, 0), [0; 4]);
    assert_eq!(leaf(&given, 0x8000_000a, 0), leaf(&amd, 0x8000_000a, 0));

    let held_back = guest_cpuid(&intel, SECOND_OF_THREE, NOTHING);
    let given = guest_cpuid(&intel, SECOND_OF_THREE, EVERYTHING);
    assert_eq!([&held_back, &given].map(|guest| leaf(guest, 0x1, 0)[2] & 0x8020), [0, 0x8020]);
    assert_eq!(leaf(&held_back, 0xa, 0), [0; 4]);
    assert_eq!(leaf(&given, 0xa, 0), leaf(&intel, 0xa, 0));
}

#[test]
fn what_needs_the_hosts_consent_is_held_back() {
    let guest = guest_cpuid(&entries(INTEL), SECOND_OF_THREE, EVERYTHING);
    let [_, ebx, ecx, edx] = leaf(&guest, 0x7, 0);
    assert_eq!((ebx & (1 << 2 | 1 << 25), ecx & 1 << 30), (0, 0), "SGX, processor trace");
    assert_eq!(edx & 0x0340_0000, 0, "AMX");
    assert_eq!(leaf(&guest, 0xd, 0)[0], 0x2e7, "no tiles");
    assert_eq!(leaf(&guest, 0x8000_0007, 0), [0, 0, 0, 0x100]);
}

/// Without these the guest's kernel says `Vulnerable` of a processor whose microcode helps.
#[test]
fn controls_of_speculation_pass_whole() {
    let whole = kvm_cpuid_entry2 { eax: !0, ebx: !0, ecx: !0, edx: !0, flags: 1, ..Default::default() };
    for (mut host, vendor_leaf) in [(entries(MILAN), Some(0x8000_0021)), (entries(INTEL), None)] {
        host.retain(|entry| !matches!(entry.function, 0x7 | 0x8000_0008 | 0x8000_0021));
        host.extend([0, 1, 2].map(|index| kvm_cpuid_entry2 { function: 0x7, index, ..whole }));
        host.extend([0x8000_0008, 0x8000_0021].map(|function| kvm_cpuid_entry2 { function, ..whole }));
        let guest = guest_cpuid(&host, SECOND_OF_THREE, NOTHING);
        let edx = leaf(&guest, 0x7, 0)[3];
        // MD_CLEAR; IBRS and IBPB, STIBP, L1D flush, architectural capabilities, SSBD.
        assert_eq!(edx & (1 << 10 | 0b10_1111 << 26), 1 << 10 | 0b10_1111 << 26);
        assert_eq!(leaf(&guest, 0x7, 2)[3], !0);
        assert_eq!(leaf(&guest, 0x8000_0008, 0)[1], !0);
        if let Some(function) = vendor_leaf {
            assert_eq!(leaf(&guest, function, 0), [!0; 4]);
        }
    }
}

fn any_entry() -> impl Strategy<Value = kvm_cpuid_entry2> {
    let function = prop_oneof![
        proptest::sample::select(LISTED),
        0u32..0x40,
        (0u32..0x40).prop_map(|leaf| 0x8000_0000 | leaf),
        any::<u32>(),
    ];
    (function, 0u32..24, any::<[u32; 4]>()).prop_map(|(function, index, [eax, ebx, ecx, edx])| {
        kvm_cpuid_entry2 { function, index, flags: 1, eax, ebx, ecx, edx, ..Default::default() }
    })
}

fn any_host() -> impl Strategy<Value = Vec<kvm_cpuid_entry2>> {
    let of = prop_oneof![Just(entries(MILAN)), Just(entries(INTEL)), Just(Vec::new())];
    (of, proptest::collection::vec(any_entry(), 0..60)).prop_map(|(mut host, more)| {
        host.extend(more);
        host
    })
}

proptest! {
    #[test]
    fn no_leaf_is_in_a_guest_that_is_not_listed(host in any_host(), id in 0u8..8, pmu: bool, nested: bool) {
        let guest = guest_cpuid(&host, Topology { id, count: 8 }, CpuFeatures { pmu, nested });
        for entry in &guest {
            prop_assert!(LISTED.contains(&entry.function), "{:#x}", entry.function);
        }
    }

    #[test]
    fn each_leaf_is_there_once_in_order_and_within_its_range(host in any_host(), count in 1u8..) {
        let guest = guest_cpuid(&host, Topology { id: 0, count }, NOTHING);
        prop_assert!(guest.is_sorted_by(|a, b| (a.function, a.index) < (b.function, b.index)));
        for range in [0, 0x8000_0000] {
            let start = guest.iter().find(|entry| entry.function == range);
            let last = guest.iter().map(|entry| entry.function).rfind(|leaf| leaf & 0xc000_0000 == range);
            prop_assert!(start.is_none_or(|start| Some(start.eax) == last));
        }
    }

    #[test]
    fn more_features_take_nothing_away(host in any_host(), id in 0u8..8) {
        let topology = Topology { id, count: 8 };
        let less = guest_cpuid(&host, topology, NOTHING);
        let more = guest_cpuid(&host, topology, EVERYTHING);
        prop_assert_eq!(less.len(), more.len());
        for (less, more) in less.iter().zip(&more) {
            prop_assert_eq!((less.function, less.index), (more.function, more.index));
            for (less, more) in [(less.eax, more.eax), (less.ebx, more.ebx), (less.ecx, more.ecx), (less.edx, more.edx)] {
                prop_assert_eq!(less & !more, 0);
            }
        }
    }

    #[test]
    fn vcpus_of_a_machine_differ_by_their_ids_alone(host in any_host(), a in 0u8..8, b in 0u8..8) {
        let of = |id| guest_cpuid(&host, Topology { id, count: 8 }, NOTHING);
        let anonymous = |cpuid: Vec<kvm_cpuid_entry2>| -> Vec<_> {
            cpuid
                .into_iter()
                .map(|mut entry| {
                    match entry.function {
                        0x1 => entry.ebx &= 0x00ff_ffff,
                        0xb | 0x1f | 0x8000_0026 => entry.edx = 0,
                        0x8000_001e => (entry.eax, entry.ebx) = (0, 0),
                        _ => {}
                    }
                    (entry.function, entry.index, entry.eax, entry.ebx, entry.ecx, entry.edx)
                })
                .collect()
        };
        prop_assert_eq!(anonymous(of(a)), anonymous(of(b)));
    }
}
