//! Plans the namespaces of a spec (config-linux.md#namespaces): a namespace that the pod shares is the guest's own;
//! other namespaces of the host are refused.

use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespace;
use oci_spec::runtime::LinuxNamespaceType;
use oci_spec::runtime::Spec;

use super::PlanError;
use super::Role;
use super::hooks;

/// The network namespace on the host of a pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// None: the spec has none, or neither its path nor hooks that fill a new one.
    None,
    /// It is at this path.
    At(PathBuf),
    /// A new one, which hooks fill.
    New,
}

/// The network namespace for the sandbox of a spec.
pub fn network_namespace(spec: &Spec) -> NetworkNamespace {
    let all = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let own = all.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    match network_path(all) {
        Some(path) => NetworkNamespace::At(path),
        None if own && hooks::need_network(spec) => NetworkNamespace::New,
        None => NetworkNamespace::None,
    }
}

/// The path of the network namespace with the sandbox's interfaces, if the spec has one.
pub(super) fn network_path(namespaces: &[LinuxNamespace]) -> Option<PathBuf> {
    namespaces
        .iter()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
        .and_then(|namespace| namespace.path().clone())
        .filter(|path| !path.as_os_str().is_empty())
}

/// The namespaces that the agent is to make for a container. A namespace that the containers of a pod share is the
/// guest's own: its network namespace always; its UTS and IPC namespaces if the spec has another container's path.
/// Without a pid namespace of its own a container joins the pod's, which the agent makes and in which no process is the
/// guest's.
pub(super) fn plan_namespaces(all: &[LinuxNamespace], role: &Role) -> Result<Vec<LinuxNamespace>, PlanError> {
    let mut kept = Vec::new();
    for namespace in all {
        let path = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty());
        let shared = path.is_some();
        let keep = match namespace.typ() {
            LinuxNamespaceType::Network => false,
            LinuxNamespaceType::Uts | LinuxNamespaceType::Ipc => !shared && *role != Role::Sandbox,
            LinuxNamespaceType::Pid | LinuxNamespaceType::Cgroup => !shared,
            LinuxNamespaceType::Mount | LinuxNamespaceType::User | LinuxNamespaceType::Time => match path {
                None => true,
                Some(path) => {
                    let kind = match namespace.typ() {
                        LinuxNamespaceType::Mount => "mount",
                        LinuxNamespaceType::User => "user",
                        _ => "time",
                    };
                    return Err(PlanError::Namespace { kind, path: path.clone() });
                }
            },
        };
        if keep {
            let mut own = LinuxNamespace::default();
            own.set_typ(namespace.typ());
            kept.push(own);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(typ: LinuxNamespaceType, path: &str) -> LinuxNamespace {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace.set_path((!path.is_empty()).then(|| path.into()));
        namespace
    }

    #[test]
    fn the_network_is_the_guests() {
        let all =
            [namespace(LinuxNamespaceType::Network, "/run/netns/x"), namespace(LinuxNamespaceType::Pid, "")];
        assert_eq!(network_path(&all), Some("/run/netns/x".into()));
        assert_eq!(network_path(&all[1..]), None);
        assert_eq!(plan_namespaces(&all, &Role::Single).unwrap(), [namespace(LinuxNamespaceType::Pid, "")]);
    }

    #[test]
    fn hooks_get_a_network_namespace_if_nobody_has_made_one() {
        let spec = |namespaces: &str, hooks: &str| -> Spec {
            let linux = format!(r#"{{"namespaces":[{namespaces}]}}"#);
            let text = format!(r#"{{"ociVersion":"1.0.2","linux":{linux},"hooks":{hooks}}}"#);
            serde_json::from_str(&text).unwrap()
        };
        let hooks = r#"{"createRuntime":[{"path":"/x"}]}"#;
        for (namespaces, hooks, expected) in [
            (r#"{"type":"network"}"#, hooks, NetworkNamespace::New),
            (r#"{"type":"network"}"#, "{}", NetworkNamespace::None),
            (r#"{"type":"pid"}"#, hooks, NetworkNamespace::None),
            (r#"{"type":"network","path":"/n"}"#, hooks, NetworkNamespace::At("/n".into())),
        ] {
            assert_eq!(network_namespace(&spec(namespaces, hooks)), expected, "{namespaces} {hooks}");
        }
    }

    #[test]
    fn containers_of_a_pod_share_what_the_spec_points_at() {
        let all = [
            namespace(LinuxNamespaceType::Ipc, "/proc/7/ns/ipc"),
            namespace(LinuxNamespaceType::Uts, "/proc/7/ns/uts"),
            namespace(LinuxNamespaceType::Pid, ""),
            namespace(LinuxNamespaceType::Mount, ""),
        ];
        let role = Role::Container { sandbox_id: "s".into() };
        assert_eq!(plan_namespaces(&all, &role).unwrap(), all[2..]);
        let first = [namespace(LinuxNamespaceType::Ipc, ""), namespace(LinuxNamespaceType::Uts, "")];
        assert_eq!(plan_namespaces(&first, &Role::Sandbox).unwrap(), []);
        assert_eq!(plan_namespaces(&first, &Role::Single).unwrap(), first);
    }

    #[test]
    fn a_mount_namespace_of_the_host_is_refused() {
        let error = plan_namespaces(&[namespace(LinuxNamespaceType::Mount, "/proc/1/ns/mnt")], &Role::Single)
            .unwrap_err();
        assert!(error.to_string().contains("/proc/1/ns/mnt"));
    }
}
