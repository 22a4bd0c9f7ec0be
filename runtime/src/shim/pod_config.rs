//! The pod of a CreateSandbox: the CRI's configuration as the spec of a first container that is never run, and the files
//! that containerd leaves to the sandbox. Pure, but for writing those files.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use oci_spec::runtime::Linux;
use oci_spec::runtime::LinuxCpu;
use oci_spec::runtime::LinuxMemory;
use oci_spec::runtime::LinuxNamespace;
use oci_spec::runtime::LinuxNamespaceType;
use oci_spec::runtime::LinuxResources;
use oci_spec::runtime::Mount;
use oci_spec::runtime::Spec;

use super::wire::DnsConfig;
use super::wire::PodSandboxConfig;
use crate::failure::RpcError;
use crate::failure::RpcResult;

/// The CRI's mode of a namespace that is the node's.
const NODE: i32 = 2;

/// Annotations of containerd, which say what a container is in its pod. A user's are dropped.
const CRI_PREFIX: &str = "io.kubernetes.cri.";

/// The files of a pod that containers see, by their names in the pod's directory of them.
const FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

const SHM: &str = "/dev/shm";

/// The spec of a client that is not the CRI, as that of a sandbox. It describes no container, so hooks, which are those
/// of a container, are refused.
pub(super) fn of_bundle(id: &str, mut spec: Spec) -> RpcResult<Spec> {
    if spec.hooks().is_some() {
        return Err(RpcError::unimplemented(format!("sandbox {id}: hooks of a sandbox are not supported")));
    }
    spec.set_annotations(Some(annotations(id, spec.annotations().clone().unwrap_or_default())));
    Ok(spec)
}

/// Annotations with those that say that this is the sandbox; a client's own for that are dropped.
fn annotations(id: &str, mut all: HashMap<String, String>) -> HashMap<String, String> {
    all.retain(|name, _| !name.starts_with(CRI_PREFIX));
    all.insert(format!("{CRI_PREFIX}container-type"), "sandbox".into());
    all.insert(format!("{CRI_PREFIX}sandbox-id"), id.into());
    all
}

/// The spec from which the sandbox is planned; `network` is the path of the pod's network namespace.
pub(super) fn spec(id: &str, config: &PodSandboxConfig, network: &str) -> RpcResult<Spec> {
    let linux = config.linux.get_or_default();
    let modes = linux.security_context.get_or_default().namespace_options.get_or_default();
    for (mode, name) in [(modes.network, "network"), (modes.pid, "pid"), (modes.ipc, "ipc")] {
        if mode == NODE {
            let why = "a microVM has its own";
            return Err(RpcError::unimplemented(format!("pod {id}: the host's {name} namespace: {why}")));
        }
    }
    let mut spec = Spec::default();
    spec.set_process(None).set_root(None).set_mounts(None);
    spec.set_hostname(Some(config.hostname.clone()));
    spec.set_annotations(Some(annotations(id, config.annotations.clone())));

    let mut namespaces = Vec::new();
    if !network.is_empty() {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(LinuxNamespaceType::Network).set_path(Some(network.into()));
        namespaces.push(namespace);
    }
    let mut own = Linux::default();
    own.set_namespaces(Some(namespaces)).set_devices(None).set_masked_paths(None).set_readonly_paths(None);
    own.set_cgroups_path(cgroups_path(&linux.cgroup_parent, id));
    own.set_resources(linux.resources.as_ref().map(|limits| {
        let (mut memory, mut cpu) = (LinuxMemory::default(), LinuxCpu::default());
        memory.set_limit(Some(limits.memory_limit_in_bytes));
        cpu.set_quota(Some(limits.cpu_quota)).set_period(u64::try_from(limits.cpu_period).ok());
        let mut resources = LinuxResources::default();
        resources.set_memory(Some(memory)).set_cpu(Some(cpu));
        resources
    }));
    spec.set_linux(Some(own));
    Ok(spec)
}

/// The cgroup's path as containerd chooses it: below the parent, or a scope of the parent if that is a systemd slice.
fn cgroups_path(parent: &str, id: &str) -> Option<PathBuf> {
    let name = Path::new(parent).file_name()?.to_string_lossy();
    if name.ends_with(".slice") {
        return Some(format!("{name}:cri-containerd:{id}").into());
    }
    Some(Path::new(parent).join(id))
}

/// Writes the files of the pod that its containers see.
pub(super) fn write_files(directory: &Path, hostname: &str, dns: &DnsConfig) -> RpcResult<()> {
    fs::create_dir_all(directory).map_err(|e| RpcError::host(directory.display(), &e))?;
    let resolv_conf = match resolv_conf(dns) {
        Some(text) => text,
        None => of_host("/etc/resolv.conf")?,
    };
    let hostname = format!("{hostname}\n");
    for ((name, _), text) in FILES.iter().zip([of_host("/etc/hosts")?, hostname, resolv_conf]) {
        let path = directory.join(name);
        fs::write(&path, text).map_err(|e| RpcError::host(path.display(), &e))?;
    }
    Ok(())
}

/// A file of the host; one that does not exist counts as empty.
fn of_host(path: &str) -> RpcResult<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|e| RpcError::host(path, &e)),
    }
}

/// The text of resolv.conf(5); none if the pod has that of the host.
fn resolv_conf(dns: &DnsConfig) -> Option<String> {
    let line = |word: &str, values: &[String]| match values {
        [] => String::new(),
        some => format!("{word} {}\n", some.join(" ")),
    };
    let servers: String = dns.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let text = line("search", &dns.searches) + &servers + &line("options", &dns.options);
    (!text.is_empty()).then_some(text)
}

/// Adds what containerd leaves to the sandbox to a container's mounts: the pod's files, unless the container has its own,
/// and the pod's /dev/shm in place of a tmpfs of the container.
pub(super) fn add_mounts(spec: &mut Spec, files: &Path) {
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|mount| mount.destination() != Path::new(SHM) || mount.typ().as_deref() != Some("tmpfs"));
    let mut bind = |source: PathBuf, destination: &str, access: &str| {
        if mounts.iter().any(|mount| mount.destination() == Path::new(destination)) {
            return;
        }
        let mut mount = Mount::default();
        mount.set_destination(destination.into()).set_typ(Some("bind".into())).set_source(Some(source));
        mount.set_options(Some(["rbind", "rprivate", access].map(String::from).into()));
        mounts.push(mount);
    };
    for (name, destination) in FILES {
        bind(files.join(name), destination, if read_only { "ro" } else { "rw" });
    }
    bind(SHM.into(), SHM, "rw");
    spec.set_mounts(Some(mounts));
}

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use super::*;
    use crate::plan::Annotations;
    use crate::plan::HostFacts;
    use crate::plan::plan_sandbox;

    /// A pod as the CRI writes it, with fields that are not read between those that are.
    fn config() -> PodSandboxConfig {
        let mut bytes = b"\x0a\x03\x0a\x01p\x12\x04host\x1a\x04/log".to_vec();
        bytes.extend(b"\x22\x15\x0a\x0910.96.0.1\x12\x03svc\x1a\x03n:5");
        bytes.extend(b"\x3a\x12\x0a\x0dio.kiai.vcpus\x12\x012");
        let mut linux = b"\x0a\x05/kube".to_vec();
        // resources: 100 ms, 50 ms, shares, 64 MiB.
        linux.extend(b"\x2a\x0f\x08\xa0\x8d\x06\x10\xd0\x86\x03\x18\x02\x20\x80\x80\x80\x20");
        bytes.push(0x42);
        bytes.push(u8::try_from(linux.len()).unwrap());
        bytes.extend(linux);
        PodSandboxConfig::parse_from_bytes(&bytes).unwrap()
    }

    #[test]
    fn a_pods_configuration_plans_its_sandbox() {
        let spec = spec("pod1", &config(), "/run/netns/x").unwrap();
        let all = spec.annotations().clone().unwrap();
        let annotations = Annotations::parse(&all, &["vcpus".into()]).unwrap();
        let facts = HostFacts { memory_mib: 4096, cpus: 2, ..HostFacts::default() };
        let plan =
            plan_sandbox("pod1", &spec, &annotations, &crate::config::Config::default(), &facts).unwrap();
        assert_eq!((plan.hostname.as_str(), plan.size.vcpus, plan.size.memory_mib), ("host", 2, 320));
        assert_eq!(plan.network, Some("/run/netns/x".into()));
        assert_eq!(plan.cgroup, Some("/kube/pod1".into()));
        assert!(plan.shared_memory);
    }

    #[test]
    fn users_cannot_say_what_a_container_is_in_its_pod() {
        let mut config = config();
        config.annotations.insert(format!("{CRI_PREFIX}container-type"), "container".into());
        config.annotations.insert(format!("{CRI_PREFIX}sandbox-memory"), "1".into());
        let spec = spec("pod1", &config, "").unwrap();
        let all = spec.annotations().clone().unwrap();
        assert_eq!(all[&format!("{CRI_PREFIX}container-type")], "sandbox");
        assert!(!all.contains_key(&format!("{CRI_PREFIX}sandbox-memory")));
    }

    #[test]
    fn another_clients_spec_is_that_of_a_sandbox() {
        let bundle = Spec::default();
        let spec = of_bundle("pod1", bundle.clone()).unwrap();
        let all = spec.annotations().clone().unwrap();
        assert_eq!(all[&format!("{CRI_PREFIX}container-type")], "sandbox");
        assert_eq!(spec.linux(), bundle.linux());
        let hooked: Spec = serde_json::from_str(r#"{"ociVersion":"1.0.2","hooks":{}}"#).unwrap();
        assert!(of_bundle("pod1", hooked).unwrap_err().to_string().contains("pod1"));
    }

    #[test]
    fn the_hosts_namespaces_are_refused_by_name() {
        for (field, name) in [(1, "network"), (2, "pid"), (3, "ipc")] {
            let bytes = [0x42, 6, 0x12, 4, 0x0a, 2, field << 3, 2];
            let config = PodSandboxConfig::parse_from_bytes(&bytes).unwrap();
            let error = spec("pod1", &config, "").unwrap_err().to_string();
            assert!(error.contains("pod1") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_cgroup_is_where_containerd_would_make_it() {
        assert_eq!(cgroups_path("", "p"), None);
        assert_eq!(cgroups_path("/kubepods/burstable", "p"), Some("/kubepods/burstable/p".into()));
        let slice = cgroups_path("/kubepods.slice/kubepods-pod1.slice", "p");
        assert_eq!(slice, Some("kubepods-pod1.slice:cri-containerd:p".into()));
    }

    #[test]
    fn a_container_gets_the_pods_files_unless_it_has_its_own() {
        let directory = tempfile::tempdir().unwrap();
        write_files(directory.path(), "host", config().dns_config.get_or_default()).unwrap();
        let text = |name| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(text("resolv.conf"), "search svc\nnameserver 10.96.0.1\noptions n:5\n");
        assert_eq!(text("hostname"), "host\n");

        let mut own = Mount::default();
        own.set_destination("/etc/hosts".into()).set_source(Some("/kubelet/hosts".into()));
        let mut shm = Mount::default();
        shm.set_destination(SHM.into()).set_typ(Some("tmpfs".into()));
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![own, shm]));
        add_mounts(&mut spec, directory.path());
        let sources: Vec<_> =
            spec.mounts().as_ref().unwrap().iter().map(|m| m.source().clone().unwrap()).collect();
        let expected = [
            "/kubelet/hosts".into(),
            directory.path().join("hostname"),
            directory.path().join("resolv.conf"),
        ];
        assert_eq!(sources[..3], expected);
        assert_eq!(sources[3..], [PathBuf::from(SHM)]);
    }

    #[test]
    fn a_pod_without_dns_has_that_of_the_host() {
        assert_eq!(resolv_conf(&DnsConfig::default()), None);
    }
}
