//! `start`: launches a shim for the bundle in the working directory, and prints its address for containerd.

use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;

use oci_spec::runtime::Spec;

use super::ADDRESS_FILE;
use super::arguments::Arguments;
use super::launch;
use super::launch::LaunchOptions;
use crate::failure::RpcError;
use crate::failure::RpcResult;
use crate::failure::chain;
use crate::plan::Annotations;
use crate::plan::Role;
use crate::plan::check_id;

/// The version of the Task service that containerd 2 asks for.
const BOOTSTRAP_VERSION: u32 = 3;

pub(super) fn start(arguments: &Arguments) -> RpcResult<()> {
    let bundle = arguments.bundle()?;
    let address = match sandbox_of(&bundle)? {
        // Another container of a pod: its shim runs, and containerd has the bundles in one directory.
        Some(sandbox) => {
            let theirs = bundle.with_file_name(&sandbox).join(ADDRESS_FILE);
            let address = fs::read_to_string(&theirs).map_err(|e| {
                RpcError::precondition(format!("sandbox {sandbox} is not running: {}: {e}", theirs.display()))
            })?;
            let ours = bundle.join(ADDRESS_FILE);
            fs::write(&ours, &address).map_err(|e| RpcError::host(ours.display(), &e))?;
            address
        }
        None => {
            let socket = launch::launch(&LaunchOptions {
                id: arguments.id.clone(),
                namespace: arguments.namespace.clone(),
                bundle,
                address: Some(arguments.address.clone().into()),
                debug: arguments.debug,
                ports: Vec::new(),
                afterwards: Vec::new(),
            })?;
            launch::address(&socket)
        }
    };
    let newest = std::env::var("MAX_SHIM_VERSION").ok().and_then(|version| version.parse().ok());
    io::stdout()
        .write_all(answer(&address, newest).as_bytes())
        .map_err(|e| RpcError::host("print the address", &e))
}

/// The answer for containerd: JSON for containerd 2, which sends its newest version; a bare address for older ones,
/// which use v2.
fn answer(address: &str, newest: Option<u32>) -> String {
    match newest {
        Some(newest) if newest >= BOOTSTRAP_VERSION => {
            serde_json::json!({ "version": BOOTSTRAP_VERSION, "address": address, "protocol": "ttrpc" })
                .to_string()
        }
        _ => address.to_owned(),
    }
}

/// The sandbox that a bundle's container belongs to, if it is not its own.
fn sandbox_of(bundle: &Path) -> RpcResult<Option<String>> {
    let path = bundle.join("config.json");
    let spec =
        Spec::load(&path).map_err(|e| RpcError::invalid(format!("{}: {}", path.display(), chain(&e))))?;
    let all = spec.annotations().clone().unwrap_or_default();
    // Only the role is read here; Kiai's own annotations are checked when the container is created.
    let role = all.into_iter().filter(|(name, _)| !name.starts_with("io.kiai.")).collect();
    match Annotations::parse(&role, &[])?.role {
        Role::Container { sandbox_id } => {
            check_id(&sandbox_id)?;
            Ok(Some(sandbox_id))
        }
        Role::Single | Role::Sandbox => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_containerd_gets_the_answer_it_reads() {
        assert_eq!(answer("unix:///s", None), "unix:///s");
        assert_eq!(answer("unix:///s", Some(2)), "unix:///s");
        let json: serde_json::Value = serde_json::from_str(&answer("unix:///s", Some(3))).unwrap();
        assert_eq!((json["version"].as_u64(), json["address"].as_str()), (Some(3), Some("unix:///s")));
    }

    #[test]
    fn a_container_of_a_pod_names_its_sandbox() {
        let bundle = tempfile::tempdir().unwrap();
        let write = |annotations: &str| {
            let text = format!(r#"{{"ociVersion":"1.0.2","annotations":{annotations}}}"#);
            fs::write(bundle.path().join("config.json"), text).unwrap();
        };
        write("{}");
        assert_eq!(sandbox_of(bundle.path()).unwrap(), None);
        write(r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"pod1"}"#);
        assert_eq!(sandbox_of(bundle.path()).unwrap(), Some("pod1".into()));
        write(r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"../x"}"#);
        assert!(sandbox_of(bundle.path()).is_err());
    }
}
