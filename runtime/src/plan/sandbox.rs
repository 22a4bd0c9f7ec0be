//! Plans a pod's microVM from the spec of its first container: size, kernel and initrd, network.

use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;
use oci_spec::runtime::Spec;

use super::Annotations;
use super::Bounds;
use super::HostFacts;
use super::Limits;
use super::MachineSize;
use super::PlanError;
use super::Role;
use super::mounts;
use super::namespaces;
use crate::config::Config;

/// The plan of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPlan {
    /// The sandbox's id: that of its first container.
    pub id: String,
    /// The guest's host name; empty leaves the kernel's.
    pub hostname: String,
    /// The machine's size when the first container starts.
    pub size: MachineSize,
    /// The machine's bounds for every later change of limits.
    pub bounds: Bounds,
    /// The limits of all containers together at first.
    pub limits: Limits,
    /// Path of the guest kernel.
    pub kernel: PathBuf,
    /// Path of the initramfs, which contains the agent.
    pub initrd: PathBuf,
    /// Parameters for the kernel's command line.
    pub kernel_parameters: Vec<String>,
    /// A file to which the guest's console is appended.
    pub console: Option<PathBuf>,
    /// Guest RAM is in the host's pool of 2 MiB pages.
    pub huge_pages: bool,
    /// Path of the network namespace whose interfaces the guest takes over.
    pub network: Option<PathBuf>,
    /// The containers share a /dev/shm.
    pub shared_memory: bool,
    /// The sandbox's cgroup on the host, as the spec has it.
    pub cgroup: Option<PathBuf>,
    /// Folder of templates that the sandbox may go on from.
    pub templates: Option<PathBuf>,
    /// How long the guest may take until its agent connects, seconds.
    pub boot_timeout_seconds: u32,
}

/// Plans the sandbox of `spec`, its first container.
pub fn plan_sandbox(
    id: &str,
    spec: &Spec,
    annotations: &Annotations,
    config: &Config,
    facts: &HostFacts,
) -> Result<SandboxPlan, PlanError> {
    let linux = spec.linux().as_ref().ok_or(PlanError::Missing("linux section"))?;
    let limits = limits(linux.resources().as_ref(), annotations, facts);
    let mut bounds = Bounds::of(
        limits,
        (config.memory_mib, config.vcpus),
        (annotations.memory_mib, annotations.vcpus),
        (annotations.max_memory_mib.or(config.max_memory_mib), annotations.max_vcpus.or(config.max_vcpus)),
        (facts.memory_mib, facts.cpus),
    )?;
    let size = bounds.size(limits)?;
    if annotations.kernel.is_some() {
        // Another kernel may not support hotplug of memory (CONFIG_VIRTIO_MEM=y) or of CPUs (CONFIG_HOTPLUG_CPU=y).
        bounds.boot_mib = size.memory_mib;
        bounds.boot_vcpus = size.vcpus;
    }

    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mut kernel_parameters = config.kernel_parameters.clone();
    if annotations.console.is_some() {
        // A console is for more than warnings; the machine's default parameters include `quiet`.
        kernel_parameters.push("loglevel=7".into());
    }
    Ok(SandboxPlan {
        id: id.into(),
        hostname: spec.hostname().clone().unwrap_or_default(),
        size,
        bounds,
        limits,
        kernel: annotations.kernel.clone().unwrap_or_else(|| config.kernel.clone()),
        initrd: config.initrd.clone(),
        kernel_parameters,
        console: annotations.console.clone(),
        huge_pages: config.huge_pages,
        network: namespaces::network_path(linux.namespaces().as_deref().unwrap_or_default()),
        shared_memory: annotations.role == Role::Sandbox || mounts::wants_shm(mounts),
        cgroup: linux.cgroups_path().clone().filter(|path| !path.as_os_str().is_empty()),
        templates: None,
        boot_timeout_seconds: config.boot_timeout_seconds,
    })
}

/// The limits of all containers together: the kubelet's, or those of the only container.
fn limits(resources: Option<&LinuxResources>, annotations: &Annotations, facts: &HostFacts) -> Limits {
    let own = resources.map(|resources| Limits::default().changed(resources, facts.memory_mib));
    let own = own.unwrap_or_default();
    Limits {
        memory: annotations.pod_memory.unwrap_or(own.memory),
        cpu_millis: annotations.pod_cpu_millis.unwrap_or(own.cpu_millis),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxCpuBuilder;
    use oci_spec::runtime::LinuxMemoryBuilder;
    use oci_spec::runtime::LinuxResourcesBuilder;

    use super::*;

    fn spec(limit: Option<i64>, quota: Option<i64>) -> Spec {
        let mut spec = Spec::default();
        let mut memory = LinuxMemoryBuilder::default();
        if let Some(limit) = limit {
            memory = memory.limit(limit);
        }
        let mut cpu = LinuxCpuBuilder::default().period(100_000u64);
        if let Some(quota) = quota {
            cpu = cpu.quota(quota);
        }
        let resources = LinuxResourcesBuilder::default()
            .memory(memory.build().unwrap())
            .cpu(cpu.build().unwrap())
            .build()
            .unwrap();
        spec.linux_mut().as_mut().unwrap().set_resources(Some(resources));
        spec
    }

    fn plan(spec: &Spec, annotations: &Annotations) -> Result<SandboxPlan, PlanError> {
        let facts = HostFacts { memory_mib: 4096, cpus: 2, ..HostFacts::default() };
        plan_sandbox("s", spec, annotations, &Config::default(), &facts)
    }

    #[test]
    fn limits_come_on_top_of_the_base() {
        let none = plan(&spec(None, None), &Annotations::default()).unwrap();
        assert_eq!((none.size.memory_mib, none.size.vcpus), (256, 1));
        let some = plan(&spec(Some(100 << 20), Some(250_000)), &Annotations::default()).unwrap();
        assert_eq!((some.size.memory_mib, some.size.vcpus), (356, 3));
        let odd = plan(&spec(Some((101 << 20) - 5), None), &Annotations::default()).unwrap();
        assert_eq!(odd.size.memory_mib, 358);
    }

    #[test]
    fn the_guest_boots_with_the_base_and_may_grow_to_what_the_host_has() {
        let plan = plan(&spec(Some(1 << 30), None), &Annotations::default()).unwrap();
        let Bounds { boot_mib, most_mib, most_vcpus, .. } = plan.bounds;
        assert_eq!((boot_mib, plan.size.memory_mib, most_mib), (256, 1280, 4096));
        assert_eq!((plan.size.vcpus, most_vcpus), (1, 2));
    }

    #[test]
    fn the_guest_boots_on_one_cpu_whatever_it_is_to_have() {
        let plan = plan(&spec(None, Some(400_000)), &Annotations::default()).unwrap();
        assert_eq!((plan.bounds.boot_vcpus, plan.size.vcpus), (1, 4));
    }

    #[test]
    fn a_kernel_that_is_not_ours_boots_with_all_of_its_memory_and_cpus() {
        let annotations = Annotations { kernel: Some("/k".into()), ..Annotations::default() };
        let plan = plan(&spec(Some(1 << 30), Some(400_000)), &annotations).unwrap();
        assert_eq!((plan.bounds.boot_mib, plan.size.memory_mib), (1280, 1280));
        assert_eq!((plan.bounds.boot_vcpus, plan.size.vcpus), (4, 4));
    }

    #[test]
    fn no_limit_is_written_in_many_ways() {
        for limit in [-1, 0, i64::MAX, 0x7fff_ffff_ffff_f000] {
            let plan = plan(&spec(Some(limit), Some(-1)), &Annotations::default()).unwrap();
            assert_eq!(plan.size.memory_mib, 256);
        }
    }

    #[test]
    fn annotations_win() {
        let annotations = Annotations {
            vcpus: Some(2),
            memory_mib: Some(64),
            kernel: Some("/k".into()),
            ..Annotations::default()
        };
        let plan = plan(&spec(Some(1 << 30), Some(800_000)), &annotations).unwrap();
        assert_eq!((plan.size.vcpus, plan.size.memory_mib, plan.kernel), (2, 64, "/k".into()));
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(plan(&spec(None, Some(6_500_000)), &Annotations::default()).is_err());
        let zero = Annotations { vcpus: Some(0), ..Annotations::default() };
        assert!(plan(&spec(None, None), &zero).is_err());
    }
}
