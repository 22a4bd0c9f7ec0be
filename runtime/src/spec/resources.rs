//! Limits of a container's cgroup (OCI runtime-spec `config-linux.md#control-groups`). Pure.

use oci_spec::runtime::LinuxCpu;
use oci_spec::runtime::LinuxDeviceCgroup;
use oci_spec::runtime::LinuxMemory;
use oci_spec::runtime::LinuxPids;
use oci_spec::runtime::LinuxResources;

use crate::spec::quantity::Cpus;
use crate::spec::quantity::MemorySize;

/// CPU quota, memory limit and device rules. No swap limit is set: a sandbox has no swap.
pub(crate) fn plan_resources(
    cpus: Option<Cpus>,
    memory: Option<MemorySize>,
    rules: Vec<LinuxDeviceCgroup>,
) -> LinuxResources {
    let mut resources = plan_limits(cpus, memory);
    resources.set_devices(Some(rules));
    resources
}

/// The maximum number of processes.
pub(crate) fn plan_pids(limit: i64) -> LinuxPids {
    let mut pids = LinuxPids::default();
    pids.set_limit(limit);
    pids
}

/// CPU quota and memory limit, the limits that can be changed for a running container.
pub(crate) fn plan_limits(cpus: Option<Cpus>, memory: Option<MemorySize>) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    if let Some(cpus) = cpus {
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(Some(cpus.quota_us()));
        cpu.set_period(Some(cpus.period_us()));
        resources.set_cpu(Some(cpu));
    }
    if let Some(MemorySize(bytes)) = memory {
        let mut limit = LinuxMemory::default();
        // MemorySize fits 63 bits: its parser refuses more.
        limit.set_limit(Some(i64::try_from(bytes).unwrap_or(i64::MAX)));
        resources.set_memory(Some(limit));
    }
    resources
}
