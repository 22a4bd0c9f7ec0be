//! The limits of a container that determine its sandbox's size, as they were last set. Pure.

use oci_spec::runtime::LinuxCpu;
use oci_spec::runtime::LinuxMemory;
use oci_spec::runtime::LinuxResources;

/// No limit, as the OCI runtime-spec writes it.
const NONE: i64 = -1;

/// Limits of memory and CPU time; none where no client set one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Applied {
    memory: Option<i64>,
    quota: Option<i64>,
    period: Option<u64>,
}

impl Applied {
    /// These limits, changed by those that `resources` has.
    pub(super) fn with(self, resources: &LinuxResources) -> Self {
        let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
        let cpu = resources.cpu().as_ref();
        Self {
            memory: memory.or(self.memory),
            quota: cpu.and_then(|cpu| cpu.quota()).or(self.quota),
            period: cpu.and_then(|cpu| cpu.period()).or(self.period),
        }
    }

    /// Resources that set exactly these limits, and lift those that no client set.
    pub(super) fn resources(self) -> LinuxResources {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(self.memory.unwrap_or(NONE)));
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(Some(self.quota.unwrap_or(NONE)));
        cpu.set_period(self.period);
        let mut resources = LinuxResources::default();
        resources.set_devices(None);
        resources.set_memory(Some(memory));
        resources.set_cpu(Some(cpu));
        resources
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(limit: i64) -> LinuxResources {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(limit));
        let mut resources = LinuxResources::default();
        resources.set_memory(Some(memory));
        resources
    }

    #[test]
    fn what_is_not_mentioned_stays_and_what_was_never_said_is_lifted() {
        let applied = Applied::default().with(&memory(1 << 20)).with(&LinuxResources::default());
        assert_eq!(applied, Applied { memory: Some(1 << 20), ..Applied::default() });
        let resources = applied.resources();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1 << 20));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(-1));
        assert_eq!(Applied::default().with(&resources), Applied { quota: Some(-1), ..applied });
    }
}
