//! The plan of one container: the spec for the agent, and the volumes and devices the host provides.

use oci_spec::runtime::Spec;

use super::Annotations;
use super::Disk;
use super::HostFacts;
use super::HostHooks;
use super::PassthroughFunction;
use super::PlanError;
use super::Role;
use super::Volume;
use super::devices;
use super::hooks;
use super::mounts;
use super::namespaces;

/// The plan of one container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerPlan {
    /// The spec for the agent: mount sources and namespaces are the guest's, everything else is as the client wrote it.
    pub spec: Spec,
    /// Paths of the host to bind into the shared directory.
    pub volumes: Vec<Volume>,
    /// Block devices of the host to assign.
    pub disks: Vec<Disk>,
    /// PCI functions of the host to pass through.
    pub functions: Vec<PassthroughFunction>,
    /// The container gets a node of every device of the guest, besides those of its spec.
    pub all_devices: bool,
    /// Hooks that run on the host.
    pub hooks: HostHooks,
    /// The process has a terminal.
    pub terminal: bool,
    /// Rows and columns of the terminal; 0 leaves the kernel's default.
    pub terminal_size: (u32, u32),
}

/// Refuses an id that cannot name a directory (containerd's rule for identifiers, with a greater length).
pub fn check_id(id: &str) -> Result<(), PlanError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let starts = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && id.len() <= 128 && id.chars().all(allowed) { Ok(()) } else { Err(PlanError::Id(id.into())) }
}

/// Plans a container. `spec` is as the client wrote it.
pub fn plan_container(
    container_id: &str,
    spec: &Spec,
    annotations: &Annotations,
    facts: &HostFacts,
) -> Result<ContainerPlan, PlanError> {
    check_id(container_id)?;
    let process = spec.process().as_ref().ok_or(PlanError::Missing("process"))?;
    let terminal = process.terminal().unwrap_or(false);
    let size = |figure: u64| u32::try_from(figure).unwrap_or(0);
    let terminal_size =
        process.console_size().map_or((0, 0), |console| (size(console.height()), size(console.width())));

    let mut spec = spec.clone();
    let hooks = hooks::plan_hooks(&mut spec)?;
    let mut all = spec.mounts().clone().unwrap_or_default();
    let volumes = mounts::plan_mounts(container_id, &mut all, facts)?;
    spec.set_mounts(Some(all));

    let mut linux = spec.linux().clone().ok_or(PlanError::Missing("linux section"))?;
    let own =
        namespaces::plan_namespaces(linux.namespaces().as_deref().unwrap_or_default(), &annotations.role)?;
    linux.set_namespaces(Some(own));
    let rules =
        linux.resources().as_ref().and_then(|resources| resources.devices().clone()).unwrap_or_default();
    let entries = linux.devices().as_deref().unwrap_or_default();
    let (disks, functions) = devices::plan_devices(entries, &rules, &annotations.functions, facts)?;
    spec.set_linux(Some(linux));

    if annotations.role != Role::Single {
        // The sandbox sets the pod's host name; a container without its own UTS namespace must not set another.
        spec.set_hostname(None);
    }
    let all_devices = annotations.all_devices;
    Ok(ContainerPlan { spec, volumes, disks, functions, all_devices, hooks, terminal, terminal_size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_of_directories() {
        for id in ["a", "0", "redis_1.x-y", &"x".repeat(128)] {
            assert_eq!(check_id(id), Ok(()), "{id}");
        }
        for id in ["", ".", "..", "-x", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn everything_but_sources_and_namespaces_reaches_the_agent_as_it_was() {
        let mut spec = Spec::default();
        spec.set_mounts(Some(Vec::new()));
        let plan = plan_container("c", &spec, &Annotations::default(), &HostFacts::default()).unwrap();
        let (mut before, mut after) = (spec.linux().clone().unwrap(), plan.spec.linux().clone().unwrap());
        assert!(after.namespaces().as_ref().unwrap().len() < before.namespaces().as_ref().unwrap().len());
        before.set_namespaces(None);
        after.set_namespaces(None);
        assert_eq!(before, after);
        assert_eq!(spec.process(), plan.spec.process());
        assert_eq!(spec.root(), plan.spec.root());
    }

    #[test]
    fn hooks_of_the_host_do_not_reach_the_agent() {
        let text = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","args":["x"],"user":{"uid":0,"gid":0}},
            "linux":{},"hooks":{"poststart":[{"path":"/bin/true"}]}}"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        let plan = plan_container("c", &spec, &Annotations::default(), &HostFacts::default()).unwrap();
        assert_eq!((plan.hooks.poststart.len(), plan.spec.hooks()), (1, &None));
    }
}
