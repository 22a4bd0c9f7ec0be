//! The annotations of a spec that Kiai reads: containerd's CRI annotations and its own.

use std::collections::HashMap;
use std::path::PathBuf;

use super::PassthroughMode;
use super::PciAddress;
use super::PlanError;
use super::size::millis;

const PREFIX: &str = "io.kiai.";
/// The prefix of annotations that choose a PCI function, before their number.
const FUNCTION: &str = "vfio.";
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// The role of a task in its pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Role {
    /// A pod of one container (`kiai run`, `ctr run`).
    #[default]
    Single,
    /// The pod's first container, whose id names the sandbox.
    Sandbox,
    /// Another container of a sandbox.
    Container {
        /// The id of the sandbox it belongs to.
        sandbox_id: String,
    },
}

/// The annotations of a spec, parsed and checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotations {
    /// The role of the task in its pod.
    pub role: Role,
    /// `io.kiai.vcpus`: the number of the guest's vCPUs, whatever the limits.
    pub vcpus: Option<u8>,
    /// `io.kiai.max-vcpus`: the most vCPUs that can be brought online later.
    pub max_vcpus: Option<u8>,
    /// `io.kiai.memory-mib`: the guest's memory, whatever the limits.
    pub memory_mib: Option<u32>,
    /// `io.kiai.max-memory-mib`: the most memory that the guest can have later.
    pub max_memory_mib: Option<u32>,
    /// `io.kiai.kernel`: path of the guest kernel.
    pub kernel: Option<PathBuf>,
    /// `io.kiai.console`: a file to which the guest's console is appended.
    pub console: Option<PathBuf>,
    /// `io.kiai.vfio.<n>`: PCI functions and who drives each, "ADDRESS=guest-driver" or "ADDRESS=user-space".
    pub functions: Vec<(PciAddress, PassthroughMode)>,
    /// `io.kiai.all-devices`: the container gets a node of every device of the guest.
    pub all_devices: bool,
    /// The kubelet's memory limit of the pod, bytes (containerd 1.6.9 and later).
    pub pod_memory: Option<u64>,
    /// The kubelet's CPU limit of the pod, thousandths of a CPU.
    pub pod_cpu_millis: Option<u64>,
}

impl Annotations {
    /// Parses a spec's annotations. In a pod only the annotations in `allowed` (without prefix) may be used.
    pub fn parse(all: &HashMap<String, String>, allowed: &[String]) -> Result<Self, PlanError> {
        let mut annotations = Self { role: role(all)?, ..Self::default() };
        for (name, value) in all {
            let Some(ours) = name.strip_prefix(PREFIX) else { continue };
            // A numbered annotation is allowed by its name without the number.
            let numbered = ours.strip_prefix(FUNCTION).filter(|number| number.parse::<u16>().is_ok());
            let key = if numbered.is_some() { FUNCTION.trim_end_matches('.') } else { ours };
            if annotations.role != Role::Single && !allowed.iter().any(|a| a == key) {
                return Err(PlanError::ForbiddenAnnotation(name.clone()));
            }
            match ours {
                _ if numbered.is_some() => annotations.functions.push(function(name, value)?),
                "vcpus" => annotations.vcpus = Some(number(name, value)?),
                "max-vcpus" => annotations.max_vcpus = Some(number(name, value)?),
                "max-memory-mib" => annotations.max_memory_mib = Some(number(name, value)?),
                "memory-mib" => annotations.memory_mib = Some(number(name, value)?),
                "kernel" => annotations.kernel = Some(path(name, value)?),
                "console" => annotations.console = Some(path(name, value)?),
                "all-devices" => annotations.all_devices = truth(name, value)?,
                _ => return Err(PlanError::UnknownAnnotation(name.clone())),
            }
        }
        // The map has no order, but a plan has.
        annotations.functions.sort_unstable();
        annotations.pod_memory = positive(all, SANDBOX_MEMORY)?;
        let quota = positive(all, SANDBOX_CPU_QUOTA)?;
        let period = positive(all, SANDBOX_CPU_PERIOD)?;
        annotations.pod_cpu_millis = quota.zip(period).map(|(quota, period)| millis(quota, period));
        Ok(annotations)
    }
}

fn function(name: &str, value: &str) -> Result<(PciAddress, PassthroughMode), PlanError> {
    let wish = value.split_once('=').and_then(|(at, mode)| Some((at.parse().ok()?, mode.parse().ok()?)));
    wish.ok_or_else(|| bad(name, value, "is not ADDRESS=guest-driver or ADDRESS=user-space"))
}

fn role(all: &HashMap<String, String>) -> Result<Role, PlanError> {
    match all.get(CONTAINER_TYPE).map(String::as_str) {
        None => Ok(Role::Single),
        Some("sandbox") => Ok(Role::Sandbox),
        Some("container") => match all.get(SANDBOX_ID) {
            Some(id) if !id.is_empty() => Ok(Role::Container { sandbox_id: id.clone() }),
            _ => Err(bad(SANDBOX_ID, "", "does not say which sandbox")),
        },
        Some(other) => Err(bad(CONTAINER_TYPE, other, "is neither sandbox nor container")),
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, PlanError> {
    value.parse().map_err(|_| bad(name, value, "is not a number in range"))
}

fn truth(name: &str, value: &str) -> Result<bool, PlanError> {
    value.parse().map_err(|_| bad(name, value, "is neither true nor false"))
}

fn path(name: &str, value: &str) -> Result<PathBuf, PlanError> {
    let path = PathBuf::from(value);
    if path.is_absolute() { Ok(path) } else { Err(bad(name, value, "is not an absolute path")) }
}

/// A number of the CRI; zero and negative numbers mean that there is no limit.
fn positive(all: &HashMap<String, String>, name: &str) -> Result<Option<u64>, PlanError> {
    let Some(value) = all.get(name) else { return Ok(None) };
    let number: i64 = number(name, value)?;
    Ok(u64::try_from(number).ok().filter(|&n| n > 0))
}

fn bad(name: &str, value: &str, reason: &'static str) -> PlanError {
    PlanError::Annotation { name: name.into(), value: value.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(all: &[(&str, &str)], allowed: &[&str]) -> Result<Annotations, PlanError> {
        let all = all.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let allowed: Vec<String> = allowed.iter().map(|a| a.to_string()).collect();
        Annotations::parse(&all, &allowed)
    }

    #[test]
    fn a_task_without_a_pod_may_use_every_annotation() {
        let got =
            parse(&[("io.kiai.vcpus", "4"), ("io.kiai.console", "/c"), ("com.example", "x")], &[]).unwrap();
        assert_eq!((got.role, got.vcpus, got.console), (Role::Single, Some(4), Some("/c".into())));
    }

    #[test]
    fn a_pod_may_use_only_what_the_configuration_allows() {
        let pod = (CONTAINER_TYPE, "sandbox");
        assert!(parse(&[pod, ("io.kiai.vcpus", "4")], &["vcpus"]).is_ok());
        assert_eq!(
            parse(&[pod, ("io.kiai.console", "/etc/passwd")], &["vcpus"]),
            Err(PlanError::ForbiddenAnnotation("io.kiai.console".into()))
        );
    }

    #[test]
    fn a_wrong_value_is_refused_by_name() {
        for (name, value) in [
            ("io.kiai.vcpus", "many"),
            ("io.kiai.vcpus", "256"),
            ("io.kiai.memory-mib", "-1"),
            ("io.kiai.kernel", "vmlinux"),
            ("io.kiai.all-devices", "yes"),
            ("io.kiai.nonsense", "1"),
            (CONTAINER_TYPE, "pod"),
            (CONTAINER_TYPE, "container"),
        ] {
            let error = parse(&[(name, value)], &[]).unwrap_err().to_string();
            assert!(error.contains("io.ku") || error.contains(name), "{error}");
        }
    }

    #[test]
    fn functions_are_chosen_by_numbered_annotations_and_sorted() {
        let chosen = parse(
            &[("io.kiai.vfio.1", "0000:00:03.0=user-space"), ("io.kiai.vfio.0", "81:00.0=guest-driver")],
            &[],
        );
        let chosen: Vec<_> =
            chosen.unwrap().functions.iter().map(|(at, mode)| format!("{at} {mode}")).collect();
        assert_eq!(chosen, ["0000:00:03.0 user-space", "0000:81:00.0 guest-driver"]);
        let pod = (CONTAINER_TYPE, "sandbox");
        let wish = ("io.kiai.vfio.7", "0000:00:03.0=user-space");
        assert!(parse(&[pod, wish], &["vfio"]).is_ok());
        assert!(parse(&[pod, wish], &["vcpus"]).is_err());
        for (name, value) in
            [("vfio.x", "0000:00:03.0=user-space"), ("vfio.0", "0000:00:03.0"), ("vfio.0", "x=y")]
        {
            assert!(parse(&[(&format!("io.kiai.{name}"), value)], &[]).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn the_kubelets_figures_are_read() {
        let got = parse(
            &[
                (CONTAINER_TYPE, "sandbox"),
                (SANDBOX_MEMORY, "1048576"),
                (SANDBOX_CPU_QUOTA, "150000"),
                (SANDBOX_CPU_PERIOD, "100000"),
            ],
            &[],
        )
        .unwrap();
        assert_eq!((got.pod_memory, got.pod_cpu_millis), (Some(1 << 20), Some(1500)));
    }
}
