//! One socket, a core for each vCPU, one thread in each core: every leaf that says so, alike.

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
use kvm_bindings::kvm_cpuid_entry2;
use serde::Deserialize;
use serde::Serialize;

use super::Vendor;

/// Which vCPU of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Topology {
    /// Its number, which is its APIC id.
    pub(crate) id: u8,
    /// How many the machine can have.
    pub(crate) count: u8,
}

/// What a subleaf of the topology leaves describes.
const THREAD: u32 = 1;
const CORE: u32 = 2;
/// The same in AMD's own leaf, where a core is level 1 and holds threads.
const COMPLEX: u32 = 2;
const SOCKET: u32 = 4;

/// AMD's leaves 0x8000_001d and 0x8000_001e are there (leaf 0x8000_0001, ECX).
const TOPOEXT: u32 = 1 << 22;

impl Topology {
    /// Writes the vCPU's identity and its place into a leaf that has more in it than that.
    pub(super) fn place(self, entry: &mut kvm_cpuid_entry2, vendor: Vendor) {
        let (id, count) = (u32::from(self.id), u32::from(self.count));
        let several = count > 1;
        match (entry.function, vendor) {
            (0x1, _) => {
                entry.ebx = (entry.ebx & 0xffff) | (id << 24) | (self.ids().min(0xff) << 16);
                entry.ecx |= 1 << 31; // there is a hypervisor
                entry.edx = with(entry.edx, 1 << 28, several); // HTT: the package holds several
            }
            (0x4, Vendor::Intel) if cache_level(entry) > 0 => {
                entry.eax =
                    (entry.eax & 0x3fff) | (self.sharers(entry) << 14) | ((self.ids() - 1).min(0x3f) << 26);
            }
            (0x8000_0001, Vendor::Amd) => entry.ecx = with(entry.ecx, 1 << 1, several), // as HTT, without threads
            (0x8000_0008, Vendor::Amd) => {
                entry.ecx = (entry.ecx & !0xffff) | (count - 1) | (self.bits() << 12);
            }
            (0x8000_001d, Vendor::Amd) if cache_level(entry) > 0 => {
                entry.eax = (entry.eax & !(0xfff << 14)) | (self.sharers(entry) << 14);
            }
            // The APIC id, and the core's: one thread in it, one node in the socket.
            (0x8000_001e, Vendor::Amd) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id, id, 0, 0),
            _ => {}
        }
    }

    /// The leaves that consist of the topology. KVM gives of each a blank first subleaf, which means none.
    pub(super) fn levels(self, host: &[kvm_cpuid_entry2], vendor: Vendor) -> Vec<kvm_cpuid_entry2> {
        let has = |leaf: u32| host.iter().any(|entry| entry.function == leaf);
        let mut levels = self.leaf(0xb, &[THREAD, CORE]);
        match vendor {
            Vendor::Intel if has(0x1f) => levels.extend(self.leaf(0x1f, &[THREAD, CORE])),
            Vendor::Amd if has(0x8000_0026) => {
                levels.extend(self.leaf(0x8000_0026, &[THREAD, COMPLEX, SOCKET]));
            }
            _ => {}
        }
        levels
    }

    fn leaf(self, function: u32, levels: &[u32]) -> Vec<kvm_cpuid_entry2> {
        let numbered = (0..).zip(levels);
        numbered
            .map(|(index, level)| kvm_cpuid_entry2 {
                function,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                // How far to shift an APIC id to get the next level's, and how many are in one of that level.
                eax: if *level == THREAD { 0 } else { self.bits() },
                ebx: if *level == THREAD { 1 } else { u32::from(self.count) },
                ecx: index | (level << 8),
                edx: u32::from(self.id),
                ..Default::default()
            })
            .collect()
    }

    /// How many others share a cache, by how many ids they can have: the first two levels are a core's own.
    fn sharers(self, cache: &kvm_cpuid_entry2) -> u32 {
        if cache_level(cache) < 3 { 0 } else { self.ids() - 1 }
    }

    /// How many APIC ids there can be: a power of two.
    fn ids(self) -> u32 {
        u32::from(self.count).next_power_of_two()
    }

    /// The width of an APIC id.
    fn bits(self) -> u32 {
        self.ids().trailing_zeros()
    }
}

/// Says that AMD's leaves of caches and cores are there, where the host's KVM gives them but not the bit that says so.
pub(super) fn offer_caches(guest: &mut [kvm_cpuid_entry2]) {
    let caches = guest.iter().any(|entry| entry.function == 0x8000_001d && cache_level(entry) > 0);
    let cores = guest.iter().any(|entry| entry.function == 0x8000_001e);
    for entry in guest.iter_mut().filter(|entry| entry.function == 0x8000_0001) {
        entry.ecx = with(entry.ecx, TOPOEXT, caches && cores);
    }
}

/// The level of the cache that a subleaf describes; 0 if it ends the list.
fn cache_level(entry: &kvm_cpuid_entry2) -> u32 {
    if entry.eax & 0x1f == 0 { 0 } else { (entry.eax >> 5) & 0x7 }
}

fn with(register: u32, bit: u32, set: bool) -> u32 {
    if set { register | bit } else { register & !bit }
}
