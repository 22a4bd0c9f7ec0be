//! The microVM a pod gets: sizes, images, network, from the spec of its first container.

use std::path::PathBuf;

use oci_spec::runtime::Spec;

use super::Annotations;
use super::HostFacts;
use super::PlanError;
use super::Role;
use super::mounts;
use super::namespaces;
use crate::config::Config;

const MOST_VCPUS: u64 = 64;

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPlan {
    /// The sandbox's id: that of its first container.
    pub id: String,
    /// Host name of the guest; empty leaves it alone.
    pub hostname: String,
    /// vCPUs, 1..=64.
    pub vcpus: u8,
    /// Guest RAM, MiB, even.
    pub memory_mib: u32,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Initial RAM file system with the agent.
    pub initrd: PathBuf,
    /// Words for the kernel.
    pub kernel_parameters: Vec<String>,
    /// A file to which the guest's console is appended.
    pub console: Option<PathBuf>,
    /// 2 MiB pages behind guest RAM.
    pub huge_pages: bool,
    /// Network namespace whose interfaces the guest takes over.
    pub network: Option<PathBuf>,
    /// The containers share a /dev/shm.
    pub shared_memory: bool,
    /// The cgroup of the host the sandbox's process belongs into, as the spec names it.
    pub cgroup: Option<PathBuf>,
    /// How long the guest may take until the agent answers, seconds.
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
    let limits = Limits::of(spec, annotations);

    let vcpus = match annotations.vcpus {
        Some(vcpus) => vcpus.into(),
        None => limits.cpus.unwrap_or(0).max(config.vcpus.into()),
    };
    if !(1..=MOST_VCPUS).contains(&vcpus) {
        return Err(PlanError::TooBig(format!("{vcpus} vCPUs: a microVM can have 1 to {MOST_VCPUS}")));
    }

    let memory_mib = match annotations.memory_mib {
        Some(mib) => u64::from(mib),
        // A limit beyond the host's memory is how some clients write "no limit".
        None => {
            let limit = limits.memory.map_or(0, |bytes| bytes.div_ceil(1 << 20));
            u64::from(config.memory_mib) + if limit > facts.memory_mib.into() { 0 } else { limit }
        }
    };
    let memory_mib = u32::try_from(memory_mib)
        .ok()
        .and_then(|mib| mib.checked_next_multiple_of(2))
        .ok_or_else(|| PlanError::TooBig(format!("{memory_mib} MiB of memory")))?;

    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mut kernel_parameters = config.kernel_parameters.clone();
    if annotations.console.is_some() {
        // Who looks at the console wants more than warnings; the machine's own words say "quiet".
        kernel_parameters.push("loglevel=7".into());
    }
    Ok(SandboxPlan {
        id: id.into(),
        hostname: spec.hostname().clone().unwrap_or_default(),
        vcpus: u8::try_from(vcpus).expect("at most 64, checked above"),
        memory_mib,
        kernel: annotations.kernel.clone().unwrap_or_else(|| config.kernel.clone()),
        initrd: config.initrd.clone(),
        kernel_parameters,
        console: annotations.console.clone(),
        huge_pages: config.huge_pages,
        network: namespaces::network_path(linux.namespaces().as_deref().unwrap_or_default()),
        shared_memory: annotations.role == Role::Sandbox || mounts::wants_shm(mounts),
        cgroup: linux.cgroups_path().clone().filter(|path| !path.as_os_str().is_empty()),
        boot_timeout_seconds: config.boot_timeout_seconds,
    })
}

/// What the containers may use, where somebody said so.
struct Limits {
    /// Bytes.
    memory: Option<u64>,
    /// CPUs, rounded up.
    cpus: Option<u64>,
}

impl Limits {
    fn of(spec: &Spec, annotations: &Annotations) -> Self {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let positive = |figure: i64| u64::try_from(figure).ok().filter(|&n| n > 0);
        let memory = resources.and_then(|r| r.memory().as_ref()).and_then(|m| m.limit()).and_then(positive);
        let cpu = resources.and_then(|r| r.cpu().as_ref());
        let quota = cpu.and_then(|cpu| cpu.quota()).and_then(positive);
        let period = cpu.and_then(|cpu| cpu.period()).filter(|&period| period > 0).unwrap_or(100_000);
        Self {
            memory: annotations.pod_memory.or(memory),
            cpus: annotations.pod_cpus.or(quota.map(|quota| quota.div_ceil(period))),
        }
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
        let facts = HostFacts { memory_mib: 4096, ..HostFacts::default() };
        plan_sandbox("s", spec, annotations, &Config::default(), &facts)
    }

    #[test]
    fn limits_come_on_top_of_the_base() {
        let none = plan(&spec(None, None), &Annotations::default()).unwrap();
        assert_eq!((none.memory_mib, none.vcpus), (256, 1));
        let some = plan(&spec(Some(100 << 20), Some(250_000)), &Annotations::default()).unwrap();
        assert_eq!((some.memory_mib, some.vcpus), (356, 3));
        let odd = plan(&spec(Some((101 << 20) - 5), None), &Annotations::default()).unwrap();
        assert_eq!(odd.memory_mib, 358);
    }

    #[test]
    fn no_limit_is_written_in_many_ways() {
        for limit in [-1, 0, i64::MAX, 0x7fff_ffff_ffff_f000] {
            assert_eq!(plan(&spec(Some(limit), Some(-1)), &Annotations::default()).unwrap().memory_mib, 256);
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
        assert_eq!((plan.vcpus, plan.memory_mib, plan.kernel), (2, 64, "/k".into()));
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(plan(&spec(None, Some(6_500_000)), &Annotations::default()).is_err());
        let zero = Annotations { vcpus: Some(0), ..Annotations::default() };
        assert!(plan(&spec(None, None), &zero).is_err());
    }
}
