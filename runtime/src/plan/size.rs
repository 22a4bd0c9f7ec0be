//! The size of a pod's microVM, derived from the limits of its containers at boot and at every change of limits.

use oci_spec::runtime::LinuxResources;

use super::PlanError;

/// Most vCPUs of a microVM.
pub(super) const MOST_VCPUS: u8 = 64;
/// Most memory of a microVM, MiB.
const MOST_MIB: u32 = 240_000;
/// Most vCPUs of a pod without a configured ceiling, which is otherwise the host's number of CPUs: a CPU that can be
/// brought online later costs per-CPU memory in the guest.
const USUAL_VCPUS: u8 = 8;

/// vCPUs that a guest boots with, whatever it is to have: on several, each step of a booting kernel is told to all of
/// them.
const BOOT_VCPUS: u8 = 1;

/// The limits of a container, or of all containers of a pod together. Zero means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Memory, bytes.
    pub memory: u64,
    /// CPU time, thousandths of a CPU.
    pub cpu_millis: u64,
}

impl Limits {
    /// These limits, changed by those that `resources` has. A memory limit beyond the host's memory means no limit,
    /// as some clients write it.
    pub fn changed(self, resources: &LinuxResources, host_memory_mib: u32) -> Self {
        let positive = |figure: i64| u64::try_from(figure).unwrap_or(0);
        let memory = resources.memory().as_ref().and_then(|memory| memory.limit()).map(positive);
        let memory = memory.map(|bytes| if bytes >> 20 > host_memory_mib.into() { 0 } else { bytes });
        let cpu = resources.cpu().as_ref();
        let quota = cpu.and_then(|cpu| cpu.quota()).map(positive);
        let period = cpu.and_then(|cpu| cpu.period()).filter(|&period| period > 0).unwrap_or(100_000);
        Self {
            memory: memory.unwrap_or(self.memory),
            cpu_millis: quota.map_or(self.cpu_millis, |quota| millis(quota, period)),
        }
    }

    /// These limits of a pod, after the limits of one of its containers have changed from `from` to `to`.
    pub fn moved(self, from: Self, to: Self) -> Self {
        Self {
            memory: self.memory.saturating_sub(from.memory).saturating_add(to.memory),
            cpu_millis: self.cpu_millis.saturating_sub(from.cpu_millis).saturating_add(to.cpu_millis),
        }
    }
}

/// Thousandths of a CPU for a quota and a period, rounded up.
pub(super) fn millis(quota: u64, period: u64) -> u64 {
    quota.saturating_mul(1000).div_ceil(period.max(1))
}

/// The size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineSize {
    /// Memory, MiB; even.
    pub memory_mib: u32,
    /// The number of vCPUs that are online.
    pub vcpus: u8,
}

/// The bounds of a machine's size, which do not change during its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Memory besides the limits of the containers, MiB.
    pub base_mib: u32,
    /// Memory that the guest boots with, and its least size, MiB; even.
    pub boot_mib: u32,
    /// Its greatest memory, MiB; even.
    pub most_mib: u32,
    /// The number of vCPUs that the guest boots with; the others come online before the first container's process.
    pub boot_vcpus: u8,
    /// Its least number of vCPUs.
    pub least_vcpus: u8,
    /// Its greatest number of vCPUs, which are present from boot.
    pub most_vcpus: u8,
    /// A fixed amount of memory that an annotation sets, whatever the limits, MiB.
    pub pinned_mib: Option<u32>,
    /// A fixed number of vCPUs that an annotation sets.
    pub pinned_vcpus: Option<u8>,
}

impl Bounds {
    /// The size of the machine for containers with these limits together.
    pub fn size(&self, limits: Limits) -> Result<MachineSize, PlanError> {
        let wanted = wanted(self.base_mib, self.pinned_mib, limits.memory);
        let memory_mib = even(wanted)?.max(self.boot_mib);
        if memory_mib > self.most_mib {
            let most = self.most_mib;
            return Err(PlanError::TooBig(format!(
                "{memory_mib} MiB of memory is more than the {most} MiB that this sandbox can have; raise the annotation \
                io.kiai.max-memory-mib or max-memory-mib in the configuration"
            )));
        }
        let vcpus = vcpus(self.least_vcpus, self.pinned_vcpus, limits.cpu_millis)?;
        if vcpus > self.most_vcpus {
            let most = self.most_vcpus;
            return Err(PlanError::TooBig(format!(
                "{vcpus} vCPUs are more than the {most} that this sandbox can have; raise the annotation \
                io.kiai.max-vcpus or max-vcpus in the configuration"
            )));
        }
        Ok(MachineSize { memory_mib, vcpus })
    }

    /// The bounds of a pod that starts with `limits`. Each pair is memory in MiB and a number of vCPUs: the
    /// configured base, fixed sizes, configured ceilings, and those of the host.
    pub(super) fn of(
        limits: Limits,
        (base_mib, least_vcpus): (u32, u8),
        (pinned_mib, pinned_vcpus): (Option<u32>, Option<u8>),
        (most_mib, most_vcpus): (Option<u32>, Option<u8>),
        (host_mib, host_vcpus): (u32, u8),
    ) -> Result<Self, PlanError> {
        let memory = even(wanted(base_mib, pinned_mib, limits.memory))?;
        let vcpus = vcpus(least_vcpus, pinned_vcpus, limits.cpu_millis)?;
        let most_mib = match most_mib {
            Some(most) => most,
            None if pinned_mib.is_some() => memory,
            None => memory.max(host_mib.min(MOST_MIB)),
        };
        let most_vcpus = match most_vcpus {
            Some(most) => most,
            None if pinned_vcpus.is_some() => vcpus,
            None => vcpus.max(host_vcpus.min(USUAL_VCPUS)),
        };
        if most_vcpus > MOST_VCPUS {
            return Err(too_many(most_vcpus.into()));
        }
        // Memory that is present at boot makes the boot slower: the rest is plugged in meanwhile.
        let boot_mib = memory.min(even(base_mib.into())?);
        let most_mib = even(most_mib.into())?;
        let boot_vcpus = BOOT_VCPUS;
        Ok(Self {
            base_mib,
            boot_mib,
            most_mib,
            boot_vcpus,
            least_vcpus,
            most_vcpus,
            pinned_mib,
            pinned_vcpus,
        })
    }
}

fn wanted(base_mib: u32, pinned_mib: Option<u32>, limit: u64) -> u64 {
    pinned_mib.map_or_else(|| u64::from(base_mib) + limit.div_ceil(1 << 20), u64::from)
}

fn even(mib: u64) -> Result<u32, PlanError> {
    u32::try_from(mib)
        .ok()
        .and_then(|mib| mib.checked_next_multiple_of(2))
        .ok_or_else(|| PlanError::TooBig(format!("{mib} MiB of memory is more than any microVM can have")))
}

fn vcpus(least: u8, pinned: Option<u8>, millis: u64) -> Result<u8, PlanError> {
    let wanted = pinned.map_or_else(|| millis.div_ceil(1000).max(least.into()), u64::from);
    u8::try_from(wanted).ok().filter(|n| (1..=MOST_VCPUS).contains(n)).ok_or_else(|| too_many(wanted))
}

fn too_many(vcpus: u64) -> PlanError {
    PlanError::TooBig(format!("{vcpus} vCPUs: a microVM can have 1 to {MOST_VCPUS}"))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxCpuBuilder;
    use oci_spec::runtime::LinuxMemoryBuilder;
    use oci_spec::runtime::LinuxResourcesBuilder;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_host_larger_than_any_microvm_is_no_obstacle() {
        let bounds =
            Bounds::of(Limits::default(), (256, 1), (None, None), (None, None), (1 << 20, 255)).unwrap();
        assert_eq!((bounds.most_mib, bounds.most_vcpus), (MOST_MIB, USUAL_VCPUS));
    }

    fn bounds(pinned: (Option<u32>, Option<u8>), most: (Option<u32>, Option<u8>)) -> Bounds {
        let limits = Limits { memory: 100 * MIB, cpu_millis: 1500 };
        Bounds::of(limits, (256, 1), pinned, most, (4096, 4)).unwrap()
    }

    #[test]
    fn the_machine_follows_the_limits_within_its_bounds() {
        let bounds = bounds((None, None), (None, None));
        assert_eq!((bounds.boot_mib, bounds.most_mib, bounds.most_vcpus), (256, 4096, 4));
        let size = |memory: u64, cpu_millis| bounds.size(Limits { memory: memory * MIB, cpu_millis });
        assert_eq!(size(0, 0), Ok(MachineSize { memory_mib: 256, vcpus: 1 }));
        assert_eq!(size(1001, 3001), Ok(MachineSize { memory_mib: 1258, vcpus: 4 }));
        let error = size(4000, 0).unwrap_err().to_string();
        assert!(error.contains("4256 MiB") && error.contains("max-memory-mib"), "{error}");
        let error = size(0, 4001).unwrap_err().to_string();
        assert!(error.contains("5 vCPUs") && error.contains("max-vcpus"), "{error}");
    }

    #[test]
    fn a_size_that_an_annotation_fixes_does_not_follow_limits() {
        let bounds = bounds((Some(64), Some(2)), (None, None));
        assert_eq!((bounds.boot_mib, bounds.most_mib, bounds.most_vcpus), (64, 64, 2));
        for limits in [Limits::default(), Limits { memory: 1 << 40, cpu_millis: 1 << 40 }] {
            assert_eq!(bounds.size(limits), Ok(MachineSize { memory_mib: 64, vcpus: 2 }));
        }
    }

    #[test]
    fn a_configured_ceiling_is_the_ceiling() {
        let low = bounds((None, None), (Some(301), Some(1)));
        assert_eq!((low.most_mib, low.most_vcpus), (302, 1));
        assert!(low.size(Limits { memory: 100 * MIB, cpu_millis: 0 }).is_err());
        let high = bounds((None, None), (Some(9000), Some(64)));
        assert_eq!((high.most_mib, high.most_vcpus), (9000, 64));
        let beyond = Bounds::of(Limits::default(), (256, 1), (None, None), (None, Some(65)), (1, 1));
        assert!(beyond.is_err());
    }

    #[test]
    fn an_update_changes_what_it_mentions() {
        let before = Limits { memory: 100 * MIB, cpu_millis: 1500 };
        let memory = LinuxMemoryBuilder::default().limit(300 << 20).build().unwrap();
        let resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
        assert_eq!(before.changed(&resources, 4096), Limits { memory: 300 * MIB, ..before });
        let cpu = LinuxCpuBuilder::default().quota(25_000).period(50_000u64).build().unwrap();
        let resources = LinuxResourcesBuilder::default().cpu(cpu).build().unwrap();
        assert_eq!(before.changed(&resources, 4096), Limits { cpu_millis: 500, ..before });
        let memory = LinuxMemoryBuilder::default().limit(-1).build().unwrap();
        let cpu = LinuxCpuBuilder::default().quota(-1).build().unwrap();
        let none = LinuxResourcesBuilder::default().memory(memory).cpu(cpu).build().unwrap();
        assert_eq!(before.changed(&none, 4096), Limits::default());
    }

    #[test]
    fn a_pod_follows_each_of_its_containers() {
        let pod = Limits { memory: 500 * MIB, cpu_millis: 1500 };
        let (from, to) =
            (Limits { memory: 200 * MIB, cpu_millis: 500 }, Limits { memory: 50 * MIB, cpu_millis: 2000 });
        assert_eq!(pod.moved(from, to), Limits { memory: 350 * MIB, cpu_millis: 3000 });
        assert_eq!(pod.moved(from, to).moved(to, from), pod);
    }
}
