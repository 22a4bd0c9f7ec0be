//! Translates an OCI spec that was written for the host into one for the guest. Pure; `device::rewrite` translates
//! devices.
//!
//! OCI runtime-spec 1.2 config.md, config-linux.md. Parts that refer to the host are replaced or dropped: the root, the
//! cgroup's path, namespaces by path, security labels, hooks of the host. A request that the guest cannot serve is an
//! error.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Arch, Hooks, LinuxNamespace, LinuxNamespaceType, Process, RootBuilder, Spec};

/// A spec that the guest can run, and the parts of it that apply to the whole sandbox.
#[derive(Debug)]
pub(super) struct Localized {
    /// The spec for libcontainer.
    pub spec: Spec,
    /// `net.*` kernel parameters: the network namespace is the guest's, shared by all containers.
    pub sysctls: BTreeMap<String, String>,
    /// The container has a pid namespace of its own, so that the end of its init ends its other processes. Otherwise it
    /// is to join the pod's ([`join_pids`]).
    pub own_pids: bool,
}

/// Why a spec cannot be run in the guest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LocalizeError {
    /// The spec lacks a part that every Linux container needs.
    #[error("the OCI spec has no {0}")]
    Missing(&'static str),
    /// The path of the root file system is wrong.
    #[error("rootfs {0:?} is not an absolute path")]
    Rootfs(PathBuf),
    /// A request that a guest cannot serve.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

/// Facts of this guest that a spec depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guest {
    /// The kernel can swap, so there are limits on it.
    pub swap: bool,
    /// The kernel knows the x32 system calls.
    pub x32: bool,
}

/// Translates `spec`; `rootfs` and `cgroup` replace its root and its cgroup's path.
pub(super) fn localize(
    mut spec: Spec,
    rootfs: &Path,
    cgroup: &str,
    guest: Guest,
) -> Result<Localized, LocalizeError> {
    if !rootfs.is_absolute() {
        return Err(LocalizeError::Rootfs(rootfs.to_owned()));
    }
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let root = RootBuilder::default().path(rootfs).readonly(read_only).build();
    spec.set_root(Some(root.expect("every field of a root has a default")));
    spec.set_hooks(spec.hooks().as_ref().and_then(guest_hooks));

    let process = spec.process_mut().as_mut().ok_or(LocalizeError::Missing("process"))?;
    localize_process(process);

    let linux = spec.linux_mut().as_mut().ok_or(LocalizeError::Missing("linux"))?;
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(LocalizeError::Unsupported("linux.netDevices"));
    }
    if linux.seccomp().as_ref().is_some_and(libcontainer::seccomp::is_notify) {
        // The notify listener is a socket on the host.
        return Err(LocalizeError::Unsupported("SCMP_ACT_NOTIFY in linux.seccomp"));
    }
    if !guest.x32
        && let Some(seccomp) = linux.seccomp_mut().as_mut()
    {
        // What the kernel lacks needs no rules; making a filter takes a third longer with them.
        let architectures = seccomp.architectures().clone();
        seccomp.set_architectures(architectures.map(|mut known| {
            known.retain(|&architecture| architecture != Arch::ScmpArchX32);
            known
        }));
    }
    linux.set_cgroups_path(Some(PathBuf::from(cgroup)));
    if linux.mount_label().is_some() || linux.intel_rdt().is_some() {
        tracing::debug!("dropped linux.mountLabel and linux.intelRdt: they are the host's");
        linux.set_mount_label(None).set_intel_rdt(None);
    }

    let mut own_pids = false;
    let mut shares_uts = true;
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain_mut(|namespace| {
        // A path names a namespace of the host; in a pod, the one that its containers share.
        let shared = namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        namespace.set_path(None);
        match namespace.typ() {
            LinuxNamespaceType::Network => false,
            // The pod's shared IPC namespace is the guest's own.
            LinuxNamespaceType::Ipc => !shared,
            LinuxNamespaceType::Uts => {
                shares_uts = shared;
                !shared
            }
            LinuxNamespaceType::Pid => {
                own_pids = !shared;
                own_pids
            }
            _ => true,
        }
    });
    linux.set_namespaces(Some(namespaces));

    let (sandbox, own) = split_sysctls(linux.sysctl().clone().unwrap_or_default());
    linux.set_sysctl((!own.is_empty()).then_some(own));

    if !guest.swap
        && let Some(memory) =
            linux.resources_mut().as_mut().and_then(|resources| resources.memory_mut().as_mut())
    {
        // The limit of memory plus swap: without swap the memory limit is enough.
        memory.set_swap(None);
    }
    if shares_uts {
        spec.set_hostname(None).set_domainname(None);
    }
    Ok(Localized { spec, sysctls: sandbox, own_pids })
}

/// Has the container join the pod's pid namespace: without one in its spec it would be in the guest's.
pub(super) fn join_pids(spec: &mut Spec, namespace: PathBuf) {
    let Some(linux) = spec.linux_mut() else { return };
    let mut pids = LinuxNamespace::default();
    pids.set_typ(LinuxNamespaceType::Pid).set_path(Some(namespace));
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.push(pids);
    linux.set_namespaces(Some(namespaces));
}

/// Drops the parts of an OCI process that refer to the host; also for `exec`.
pub(super) fn localize_process(process: &mut Process) {
    if process.apparmor_profile().is_some() || process.selinux_label().is_some() {
        tracing::debug!("dropped the AppArmor profile and SELinux label: they are the host's");
        process.set_apparmor_profile(None).set_selinux_label(None);
    }
    // libcontainer takes `false` for true, and would load seccomp when it no longer has the privilege.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
}

/// The hooks that are programs of the container. The others are programs of the host, which has refused them.
fn guest_hooks(hooks: &Hooks) -> Option<Hooks> {
    let start = hooks.start_container().clone().filter(|list| !list.is_empty())?;
    let mut kept = Hooks::default();
    kept.set_start_container(Some(start));
    Some(kept)
}

/// Splits kernel parameters into the sandbox's and the container's.
fn split_sysctls(sysctls: HashMap<String, String>) -> (BTreeMap<String, String>, HashMap<String, String>) {
    let (sandbox, own): (Vec<_>, Vec<_>) =
        sysctls.into_iter().partition(|(key, _)| key.starts_with("net.") || key.starts_with("net/"));
    (sandbox.into_iter().collect(), own.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(json: serde_json::Value) -> Result<Localized, LocalizeError> {
        let spec = serde_json::from_value(json).unwrap();
        localize(spec, Path::new("/run/kiai/shared/c/rootfs"), "/kiai/c", Guest { swap: false, x32: false })
    }

    fn minimal() -> serde_json::Value {
        serde_json::json!({
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs", "readonly": true},
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]},
            "linux": {},
        })
    }

    #[test]
    fn the_root_and_the_cgroup_are_the_guests() {
        let mut json = minimal();
        json["linux"]["cgroupsPath"] = "system.slice:cri:abc".into();
        let spec = local(json).unwrap().spec;
        let root = spec.root().clone().unwrap();
        assert_eq!(root.path(), Path::new("/run/kiai/shared/c/rootfs"));
        assert_eq!(root.readonly(), Some(true));
        assert_eq!(spec.linux().clone().unwrap().cgroups_path().clone().unwrap(), Path::new("/kiai/c"));
    }

    #[test]
    fn namespaces_of_the_host_become_the_guests_or_new_ones() {
        let mut json = minimal();
        json["hostname"] = "pod".into();
        json["linux"]["namespaces"] = serde_json::json!([
            {"type": "network", "path": "/var/run/netns/x"}, {"type": "mount"}, {"type": "pid"},
            {"type": "ipc", "path": "/proc/12/ns/ipc"}, {"type": "uts", "path": "/proc/12/ns/uts"},
        ]);
        let local = local(json).unwrap();
        assert!(local.own_pids);
        assert_eq!(*local.spec.hostname(), None);
        let namespaces = local.spec.linux().clone().unwrap().namespaces().clone().unwrap();
        let kept: Vec<_> = namespaces.iter().map(|n| (n.typ(), n.path().clone())).collect();
        assert_eq!(kept, [(LinuxNamespaceType::Mount, None), (LinuxNamespaceType::Pid, None)]);
    }

    #[test]
    fn a_container_without_pids_of_its_own_joins_the_pods() {
        for namespaces in
            [serde_json::json!([]), serde_json::json!([{"type": "pid", "path": "/proc/12/ns/pid"}])]
        {
            let mut json = minimal();
            json["linux"]["namespaces"] = namespaces;
            let Localized { mut spec, own_pids, .. } = local(json).unwrap();
            assert!(!own_pids);
            join_pids(&mut spec, "/proc/7/ns/pid".into());
            let namespaces = spec.linux().clone().unwrap().namespaces().clone().unwrap();
            let kept: Vec<_> = namespaces.iter().map(|n| (n.typ(), n.path().clone())).collect();
            assert_eq!(kept, [(LinuxNamespaceType::Pid, Some(PathBuf::from("/proc/7/ns/pid")))]);
        }
    }

    #[test]
    fn a_container_with_its_own_uts_namespace_keeps_its_hostname() {
        let mut json = minimal();
        json["hostname"] = "alone".into();
        json["linux"]["namespaces"] = serde_json::json!([{"type": "uts"}, {"type": "ipc"}]);
        let local = local(json).unwrap();
        assert!(!local.own_pids);
        assert_eq!(local.spec.hostname().as_deref(), Some("alone"));
        assert_eq!(local.spec.linux().clone().unwrap().namespaces().clone().unwrap().len(), 2);
    }

    #[test]
    fn network_parameters_are_the_sandboxs_and_others_the_containers() {
        let mut json = minimal();
        json["linux"]["sysctl"] = serde_json::json!({
            "net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "1",
        });
        let local = local(json).unwrap();
        assert_eq!(local.sysctls.keys().collect::<Vec<_>>(), ["net.ipv4.ip_unprivileged_port_start"]);
        let own = local.spec.linux().clone().unwrap().sysctl().clone().unwrap();
        assert_eq!(own.keys().collect::<Vec<_>>(), ["kernel.shmmax"]);
    }

    #[test]
    fn hooks_of_the_runtime_are_left_to_the_host() {
        let mut json = minimal();
        let hook = serde_json::json!([{"path": "/bin/hook"}]);
        json["hooks"] = serde_json::json!({"createRuntime": hook, "poststop": hook});
        assert_eq!(*local(json.clone()).unwrap().spec.hooks(), None);
        json["hooks"]["startContainer"] = hook;
        let hooks = local(json).unwrap().spec.hooks().clone().unwrap();
        assert!(hooks.start_container().is_some());
        assert!(hooks.create_runtime().is_none() && hooks.poststop().is_none());
    }

    #[test]
    fn labels_of_the_host_go_and_a_false_is_as_good_as_nothing() {
        let mut json = minimal();
        json["process"]["apparmorProfile"] = "cri-containerd.apparmor.d".into();
        json["process"]["selinuxLabel"] = "x".into();
        json["process"]["noNewPrivileges"] = false.into();
        json["linux"]["mountLabel"] = "y".into();
        let spec = local(json).unwrap().spec;
        let process = spec.process().clone().unwrap();
        assert!(process.apparmor_profile().is_none() && process.selinux_label().is_none());
        assert_eq!(process.no_new_privileges(), None);
        assert!(spec.linux().clone().unwrap().mount_label().is_none());
    }

    #[test]
    fn a_filter_has_no_rules_for_system_calls_that_the_kernel_lacks() {
        let mut json = minimal();
        json["linux"]["seccomp"] = serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        });
        let architectures = |x32| {
            let spec = serde_json::from_value(json.clone()).unwrap();
            let guest = Guest { swap: false, x32 };
            let local = localize(spec, Path::new("/rootfs"), "/kiai/c", guest).unwrap();
            local.spec.linux().clone().unwrap().seccomp().clone().unwrap().architectures().clone().unwrap()
        };
        assert_eq!(architectures(false), [Arch::ScmpArchX86_64, Arch::ScmpArchX86]);
        assert_eq!(architectures(true).len(), 3);
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let mut json = minimal();
        json["linux"]["netDevices"] = serde_json::json!({"eth9": {}});
        assert_eq!(local(json).unwrap_err(), LocalizeError::Unsupported("linux.netDevices"));
        let mut json = minimal();
        json["linux"]["seccomp"] = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
        });
        assert!(local(json).is_err());
        let mut json = minimal();
        json.as_object_mut().unwrap().remove("process");
        assert_eq!(local(json).unwrap_err(), LocalizeError::Missing("process"));
    }
}
